"""What graphs, references, ranges and fits were made with, as hashes: what was made with something else is stale."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fewstep.artifact.manifest import Manifest

__all__ = ["decoder_digest", "made_of", "network_digest"]


def network_digest(manifest: Manifest, name: str) -> str:
    """Of a network's files and of how it is used: equal for equal networks, with their files or shipped without them."""
    entry = manifest.networks[name]
    if entry.directory is None and entry.digest:
        return entry.digest
    how = entry.model_dump(mode="json", exclude={"directory", "digest"}, exclude_defaults=True)
    how["parametrisation"]["kind"] = entry.parametrisation.kind  # a default, but the others' meaning depends on it
    return _digest([how, _files(manifest, entry.directory)])


def decoder_digest(manifest: Manifest) -> str | None:
    """The same of what turns latents into images; None where the sampler works on images."""
    latent = manifest.latent
    if latent is None:
        return None
    if latent.directory is None and latent.digest:
        return latent.digest
    how = latent.model_dump(mode="json", exclude={"directory", "digest"}, exclude_defaults=True)
    return _digest([how, _files(manifest, latent.directory)])


def made_of(manifest: Manifest, network: str, plan: str | None) -> str:
    """Of everything that a graph's numbers come from: network, plan, decoder, image and condition; names do not count."""
    condition = manifest.condition
    words = {"network", "solver"}
    table = manifest.plans[plan].model_dump(mode="json", exclude=words, exclude_defaults=True) if plan else None
    inputs = [condition.kind, condition.classes, *condition.inputs()]
    image = manifest.image.model_dump(mode="json")
    return _digest([network_digest(manifest, network), table, decoder_digest(manifest), image, inputs])


def _files(manifest: Manifest, directory: str | None) -> dict[str, str]:
    """Hashes of a directory's files by their path in it."""
    prefix = f"{directory}/"
    return {path.removeprefix(prefix): f.sha256 for path, f in manifest.files.items() if path.startswith(prefix)}


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

"""What graphs, references, ranges and fits were made with, as hashes: what was made with something else is stale."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import Manifest

__all__ = ["component_digest", "made_of", "model_digest"]


def component_digest(manifest: Manifest, name: str) -> str:
    """Of a component's files and of how it is used: equal for equal ones, with their files or shipped without them.

    Args:
        manifest: with the hashes of its files.
        name: of a component.
    """
    entry = manifest.components[name]
    if entry.directory is None and entry.digest:
        return entry.digest
    how = entry.model_dump(mode="json", exclude={"directory", "digest"}, exclude_defaults=True)
    if isinstance(entry, DenoiserEntry):
        how["parametrisation"]["kind"] = entry.parametrisation.kind  # a default, but the others' meaning depends on it
    return _digest([entry.role, how, _files(manifest, entry.directory)])


def model_digest(manifest: Manifest, denoiser: str) -> str:
    """Of all that makes a denoiser's samples: itself, and every component that is no denoiser.

    Args:
        manifest: with the hashes of its files.
        denoiser: by name.
    """
    others = sorted(name for name in manifest.components if name not in manifest.denoisers)
    return _digest([component_digest(manifest, name) for name in (denoiser, *others)])


def made_of(manifest: Manifest, denoiser: str, plan: str | None) -> str:
    """Of everything that a graph's numbers come from: components, plan, signature and state; names of parts do not count.

    Args:
        manifest: with the hashes of its files.
        denoiser: by name.
        plan: by name; None for a graph that takes any plan.
    """
    words = {"denoiser", "solver"}
    table = manifest.plans[plan].model_dump(mode="json", exclude=words, exclude_defaults=True) if plan else None
    signature = manifest.signature.model_dump(mode="json", exclude={"inputs": {"__all__": {"names"}}})
    return _digest([model_digest(manifest, denoiser), table, signature, manifest.state.shape])


def _files(manifest: Manifest, directory: str | None) -> dict[str, str]:
    """Hashes of a directory's files by their path in it."""
    prefix = f"{directory}/"
    return {path.removeprefix(prefix): f.sha256 for path, f in manifest.files.items() if path.startswith(prefix)}


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

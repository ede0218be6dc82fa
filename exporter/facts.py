"""What an ONNX file says of itself in its metadata, from the manifest alone: `export` writes it, `check` compares it.

Keys begin with "fewstep."; values are text, lists have a line for each item. Nothing in them depends on when or where a graph
was written, so the same export gives the same bytes. A bundle's own hash cannot stand in a file that it covers; the hashes are
of what the graph was made from.
"""

from __future__ import annotations

import hashlib

import fewstep
from fewstep.artifact.card import license
from fewstep.artifact.digests import decoder_digest, made_of, network_digest
from fewstep.artifact.manifest import GraphEntry, Manifest, PlanEntry

__all__ = ["FREE", "HASHES", "MADE_OF", "PREFIX", "facts"]

PREFIX = "fewstep."
MADE_OF = f"{PREFIX}made_of"  # see fewstep.artifact.digests
FREE = frozenset(f"{PREFIX}{key}" for key in ("version", "bundle", "license", "solver"))  # may change without a new export
HASHES = frozenset({MADE_OF, *(f"{PREFIX}{part}_sha256" for part in ("plan", "network", "decoder"))})  # the first is of all


def facts(manifest: Manifest, graph: GraphEntry) -> dict[str, str]:
    """The facts of a graph as its bundle has them, by key. A network or decoder that was shipped without files has no hash."""
    image, condition = manifest.image, manifest.condition
    network, latent = manifest.networks[graph.network], manifest.latent
    found = {
        "version": fewstep.__version__,
        "bundle": manifest.name,
        "network": graph.network,
        "precision": graph.precision,
        "layout": graph.layout,
        "batched_guidance": str(graph.batched_guidance).lower(),
        "image": "x".join(map(str, image.shape)),
        "low": f"{image.low:g}",
        "high": f"{image.high:g}",
        "condition": condition.kind,
        "license": license(manifest, graph.network),
    }
    if condition.kind == "labels":
        found |= {"classes": str(condition.classes), "names": "\n".join(condition.names)}
    if graph.plan is not None:
        plan = manifest.plans[graph.plan]
        found |= {"plan": graph.plan, "solver": plan.solver, "calls": str(plan.plan().nfe), "plan_sha256": _numbers(plan)}
    if network.directory or network.digest:
        found["network_sha256"] = network_digest(manifest, graph.network)
        found["made_of"] = made_of(manifest, graph.network, graph.plan)
    if latent and (latent.directory or latent.digest):
        found["decoder_sha256"] = str(decoder_digest(manifest))
    return {PREFIX + key: value for key, value in found.items() if value}


def _numbers(plan: PlanEntry) -> str:
    """One hash for a plan's numbers, whatever its solver is called."""
    return hashlib.sha256(plan.model_dump_json(exclude={"solver", "network"}).encode()).hexdigest()

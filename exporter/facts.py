"""What an ONNX file says of itself in its metadata, from the manifest alone: `export` writes it, `check` compares it.

Keys begin with "fewstep."; values are text, lists have a line for each item. Nothing in them depends on when or where a graph
was written, so the same export gives the same bytes. A bundle's own hash cannot stand in a file that it covers; the hashes are
of what the graph was made from.
"""

from __future__ import annotations

import hashlib

import fewstep
from fewstep.artifact.card import license
from fewstep.artifact.digests import component_digest, made_of
from fewstep.artifact.manifest import GraphEntry, Manifest, PlanEntry

__all__ = ["FREE", "HASHES", "MADE_OF", "PREFIX", "facts"]

PREFIX = "fewstep."
MADE_OF = f"{PREFIX}made_of"  # see fewstep.artifact.digests
FREE = frozenset(f"{PREFIX}{key}" for key in ("version", "bundle", "license", "solver"))  # may change without a new export
HASHES = frozenset({MADE_OF, *(f"{PREFIX}{part}_sha256" for part in ("plan", "network", "decoder"))})  # the first is of all


def facts(manifest: Manifest, graph: GraphEntry) -> dict[str, str]:
    """The facts of a graph as its bundle has them, by key. A network or decoder that was shipped without files has no hash.

    Args:
        manifest: of the bundle.
        graph: its entry there, or the one it is to have.
    """
    output = manifest.output
    known = {name for name, entry in manifest.components.items() if entry.directory or entry.digest}
    found = {
        "version": fewstep.__version__,
        "bundle": manifest.name,
        "network": graph.denoiser,
        "precision": graph.precision,
        "layout": graph.layout,
        "batched_guidance": str(graph.batched_guidance).lower(),
        "output": output.kind,
        "shape": "x".join(map(str, output.shape)),
        "license": license(manifest, graph.denoiser),
    }
    found |= output.facts
    for each in manifest.signature.inputs:
        found |= {f"input.{key}": value for key, value in each.facts.items()}
    if graph.plan is not None:
        plan = manifest.plans[graph.plan]
        found |= {"plan": graph.plan, "solver": plan.solver, "calls": str(plan.plan().nfe), "plan_sha256": _numbers(plan)}
    if graph.denoiser in known:
        found["network_sha256"] = component_digest(manifest, graph.denoiser)
        found["made_of"] = made_of(manifest, graph.denoiser, graph.plan)
    for name in known - manifest.denoisers.keys():
        found[f"{name}_sha256"] = component_digest(manifest, name)
    return {PREFIX + key: value for key, value in found.items() if value}


def _numbers(plan: PlanEntry) -> str:
    """One hash for a plan's numbers, whatever its solver is called."""
    return hashlib.sha256(plan.model_dump_json(exclude={"solver", "denoiser"}).encode()).hexdigest()

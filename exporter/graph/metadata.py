"""What every ONNX file says of itself: where it is from, what it takes and gives. onnxruntime's get_modelmeta() shows it.

Keys begin with "fewstep."; values are text, lists have a line for each item. Nothing in them depends on when or where a graph
was written, so the same export gives the same bytes. A bundle's own hash cannot stand in a file that it covers; the hashes are
of what the graph was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import onnx_ir as ir

import fewstep
from fewstep.bundle import Bundle
from fewstep.card import licence
from fewstep.made import decoder_digest, network_digest
from fewstep.manifest import Condition, GraphEntry, PlanEntry

__all__ = ["about", "describe"]

PREFIX = "fewstep."


def about(bundle: Bundle, graph: GraphEntry) -> dict[str, str]:
    """The facts of a graph as its bundle has them, by key. A network or decoder that was shipped without files has no hash."""
    manifest = bundle.manifest
    image, condition = manifest.image, manifest.condition
    facts = {
        "version": fewstep.__version__,
        "bundle": manifest.name,
        "network": graph.network,
        "precision": graph.precision,
        "layout": graph.layout,
        "doubled": str(graph.doubled).lower(),
        "image": f"{image.channels}x{image.height}x{image.width}",
        "low": f"{image.low:g}",
        "high": f"{image.high:g}",
        "condition": condition.kind,
        "license": licence(manifest, graph.network),
    }
    if condition.kind == "labels":
        facts |= {"classes": str(condition.classes), "names": "\n".join(condition.names)}
    if graph.plan is not None:
        plan = manifest.plans[graph.plan]
        facts |= {"plan": graph.plan, "solver": plan.solver, "calls": str(plan.plan().nfe), "plan_sha256": _numbers(plan)}
    network, latent = manifest.networks[graph.network], manifest.latent
    if network.directory or network.digest:
        facts["network_sha256"] = network_digest(manifest, graph.network)
    if latent and (latent.directory or latent.digest):
        facts["decoder_sha256"] = str(decoder_digest(manifest))
    return {PREFIX + key: value for key, value in facts.items() if value}


def describe(model: ir.Model, facts: Mapping[str, str], condition: Condition) -> None:
    """Write the facts and, of every input and output, what its numbers are, into a model whose graph is called by its kind."""
    image = f"images in [{facts[PREFIX + 'low']}, {facts[PREFIX + 'high']}]"
    meanings = {
        "noise": "unit normal, of a seed",
        "labels": f"0 to {condition.classes - 1} for a class, {condition.classes} for none",
        "x": "a state of the sampler",
        "scales": "skip, out, in and timestep of a noise level",
        "weight": "of guidance; 1 is none",
        "denoised": f"the estimate, {image}",
        "images": "0 to 255",
        "sample": f"{image}, before clipping and rounding",
    }
    meanings |= {spec.name: "of a prompt, as its encoder makes it" for spec in condition.inputs() if spec.dtype != "int64"}
    meanings |= {spec.name: "the same of the prompt that means none" for spec in condition.null_inputs()}
    values = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.doc_string = meanings[str(value.name)]
    made = facts.get(f"{PREFIX}plan", facts[f"{PREFIX}network"])
    model.graph.name = f"{facts[f'{PREFIX}bundle']}.{made}.{facts[f'{PREFIX}precision']}.{model.graph.name}"
    model.metadata_props.update(facts)
    model.metadata_props.update({PREFIX + key: _lines(of) for key, of in values.items()})
    model.producer_version = fewstep.__version__
    model.doc_string = model.graph.doc_string = _sentences(facts)


def _sentences(facts: Mapping[str, str]) -> str:
    """What a person reads first."""
    has = {key.removeprefix(PREFIX): value for key, value in facts.items()}
    calls = f"{has.get('calls')} call{'s' if has.get('calls') != '1' else ''}"
    what = f"the plan {has['plan']} ({has['solver']}), {calls}" if "plan" in has else "one step of any plan"
    of = {"labels": f" of {has.get('classes')} classes", "embeddings": " of prompts", "none": ""}[has["condition"]]
    made = f"Makes {has['image']} images{of} with the network {has['network']} of {has['bundle']}: {what}, {has['precision']}."
    return f"{made} License: {has['license']}. Written by fewstep {has['version']}."


def _lines(values: Sequence[ir.Value]) -> str:
    """A line for each tensor: its name, type, shape, and what its numbers are."""
    return "\n".join(
        f"{value.name}: {value.dtype.numpy()} ({', '.join(map(str, value.shape or ()))}), {value.doc_string}"
        for value in values
        if value.dtype is not None
    )


def _numbers(plan: PlanEntry) -> str:
    """One hash for a plan's numbers, whatever its solver is called."""
    return hashlib.sha256(plan.model_dump_json(exclude={"solver", "network"}).encode()).hexdigest()

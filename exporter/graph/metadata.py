"""A graph says what it is: its facts, its name, and of every input and output what its numbers are.

onnxruntime's get_modelmeta() shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

import fewstep
from fewstep.artifact.signature import Signature
from fewstep.exporter.facts import PREFIX

__all__ = ["describe"]


def describe(model: ir.Model, facts: Mapping[str, str], signature: Signature) -> None:
    """Write the facts and, of every input and output, what its numbers are, into a model whose graph is called by its kind.

    Args:
        model: it is changed.
        facts: by key, of fewstep.exporter.facts.
        signature: of the bundle.
    """
    output = signature.output
    meanings = {
        "noise": "unit normal, of a seed",
        "x": "a state of the sampler",
        "scales": "skip, out, in and timestep of a noise level",
        "guidance_scale": "1 is none",
        "denoised": "the estimate of the last state",
        output.tensor.name: output.meaning,
        "sample": "the same as the network has it, before rounding and units",
    }
    meanings |= {each.name: each.meaning for each in signature.inputs}
    meanings |= {each.null_tensor.name: "the same for what means none" for each in signature.inputs if each.null_tensor}
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
    made = f"Makes {has['shape']} {has['output']}s with the network {has['network']} of {has['bundle']}: {what}"
    return f"{made}, {has['precision']}. License: {has['license']}. Written by fewstep {has['version']}."


def _lines(values: Sequence[ir.Value]) -> str:
    """A line for each tensor: its name, type, shape, and what its numbers are."""
    return "\n".join(
        f"{value.name}: {value.dtype.numpy()} ({', '.join(map(str, value.shape or ()))}), {value.doc_string}"
        for value in values
        if value.dtype is not None
    )

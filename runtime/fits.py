"""What a graph or engine takes and makes, against its bundle's manifest: buffers are made, and filled, by what both say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fewstep.artifact.manifest import Manifest
from fewstep.backends.base import Program, Tensor
from fewstep.sampling.plan import Plan

__all__ = ["check_steps", "check_whole"]

Tensors = Mapping[str, Tensor]


def check_whole(name: str, program: Program, manifest: Manifest, plan: Plan) -> None:
    """Refuse a program that holds a whole plan and is not for this bundle.

    Args:
        name: of the graph or engine, for the sentence.
        program: as it was loaded.
        manifest: of the bundle.
        plan: that it holds.

    Raises:
        ValueError: where it takes or makes something else.
    """
    inputs = {"noise": _each("float32", plan.draws, *manifest.state.shape)} | _given(manifest, guided=plan.guided)
    _match(name, "takes", program.inputs, inputs, needed=inputs)
    _match(name, "makes", program.outputs, _made(manifest), needed=_made(manifest))


def check_steps(name: str, step: Program, postprocess: Program, manifest: Manifest, plan: Plan) -> None:
    """Refuse the two programs of a step layout where they are not for this bundle.

    Args:
        name: of the graph or engine, for the sentence.
        step, postprocess: as they were loaded.
        manifest: of the bundle.
        plan: that is to be walked.

    Raises:
        ValueError: where they take or make something else.
    """
    x = {"x": _each("float32", *manifest.state.shape)}
    numbers = {"scales": Tensor(np.dtype("float32"), (4,)), "guidance_scale": Tensor(np.dtype("float32"), ())}
    needed = [*x, *_given(manifest, guided=plan.guided)]
    _match(name, "takes", step.inputs, x | numbers | _given(manifest, guided=True), needed=needed)
    _match(name, "makes", step.outputs, {"denoised": x["x"]}, needed=["denoised"])
    _match(f"the second graph of {name}", "takes", postprocess.inputs, x, needed=x)
    _match(f"the second graph of {name}", "makes", postprocess.outputs, _made(manifest), needed=_made(manifest))


def _each(dtype: str, *shape: int) -> Tensor:
    """One array for each sample of a batch."""
    return Tensor(np.dtype(dtype), (None, *shape))


def _given(manifest: Manifest, *, guided: bool) -> dict[str, Tensor]:
    return {spec.name: _each(spec.dtype, *spec.shape) for spec in manifest.signature.tensors(guided=guided)}


def _made(manifest: Manifest) -> dict[str, Tensor]:
    tensor = manifest.output.tensor
    return {tensor.name: _each(tensor.dtype, *tensor.shape), "sample": _each("float32", *manifest.output.shape)}


def _match(name: str, verb: str, found: Tensors, allowed: Tensors, *, needed: Iterable[str]) -> None:
    for key in [*needed, *found]:
        if found.get(key) != allowed.get(key):
            raise ValueError(
                f"{name} {verb} {_words(found.get(key))} as {key!r}, its bundle {_words(allowed.get(key))}; export it again"
            )


def _words(tensor: Tensor | None) -> str:
    return f"{tensor.dtype} {list(tensor.at(-1))}" if tensor else "nothing"

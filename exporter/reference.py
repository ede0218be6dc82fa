"""What torch makes of a plan, state by state: the reference in golden.npz that every graph and engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import Input
from fewstep.models.decoder import Decoder
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan, trajectory

__all__ = ["reference"]

MAX_BATCH = 4
MAX_NUMBERS = 1 << 16  # of all states of a row together: large images are compared one at a time


def reference(
    bundle: Bundle, denoiser: Denoiser, plan: Plan, decoder: Decoder | None = None
) -> dict[str, npt.NDArray[np.generic]]:
    """A plan's inputs and torch's fp32 result.

    Labels count up; arrays are random, which is enough to compare.

    Args:
        bundle: whose state and signature they are of.
        denoiser: in fp32, on the CPU.
        plan: that it walks.
        decoder: of a latent model.

    Returns:
        noise (B, draws, C, ...), inputs by name, states (rows, B, C, ...) and sample (B, C, ...), what the output is made of.
    """
    shape, signature = bundle.manifest.state.shape, bundle.manifest.signature
    batch = max(1, min(MAX_BATCH, MAX_NUMBERS // prod(shape)))
    generator = torch.Generator().manual_seed(0)
    inputs = {"noise": torch.randn(batch, plan.draws, *shape, generator=generator)}
    for spec in signature.tensors(guided=plan.guided):
        counted = torch.from_numpy(signature.example(batch, guided=plan.guided)[spec.name])
        inputs[spec.name] = counted if spec.dtype == "int64" else torch.randn(batch, *spec.shape, generator=generator)
    given = tuple(inputs[each.name] for each in signature.inputs)
    null = tuple(_none(each, inputs, batch) for each in signature.inputs) if plan.guided else ()
    noise = inputs["noise"]
    with torch.no_grad():
        x = plan.begin(noise[:, 0])
        states = [step.x for step in trajectory(guided(denoiser, given, null), x, plan, list(noise[:, 1:].unbind(1)))]
        sample = states[-1] if decoder is None else decoder(states[-1])
    return {name: value.numpy() for name, value in (inputs | {"states": torch.stack(states), "sample": sample}).items()}


def _none(each: Input, inputs: Mapping[str, Tensor], batch: int) -> Tensor:
    """What means "none" for an input: the tensor that was made for it, or the constant."""
    if each.null_tensor:
        return inputs[each.null_tensor.name]
    assert each.null_constant is not None, "guided plans without it are refused"
    return torch.from_numpy(each.null_constant[None].repeat(batch, 0))

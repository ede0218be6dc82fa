"""What torch makes of a plan, state by state: the reference in golden.npz that every graph and engine is compared with."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
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

    noise (B, draws, C, H, W), the condition by name, states (rows, B, C, H, W) and sample (B, C, H, W), the image before
    rounding. Labels count up; embeddings are random, which is enough to compare.
    """
    shape, condition = bundle.manifest.state_shape, bundle.manifest.condition
    batch = max(1, min(MAX_BATCH, MAX_NUMBERS // prod(shape)))
    generator = torch.Generator().manual_seed(0)
    inputs = {"noise": torch.randn(batch, plan.draws, *shape, generator=generator)}
    for spec in (*condition.inputs(), *(condition.null_inputs() if plan.guided else ())):
        labels = torch.arange(batch) % max(condition.classes, 1)
        inputs[spec.name] = labels if spec.dtype == "int64" else torch.randn(batch, *spec.shape, generator=generator)
    given = tuple(inputs[spec.name] for spec in condition.inputs())
    null: tuple[Tensor, ...] = tuple(inputs[spec.name] for spec in condition.null_inputs() if spec.name in inputs)
    if condition.kind == "labels":
        null = (torch.full((batch,), condition.classes),)
    noise = inputs["noise"]
    with torch.no_grad():
        x = plan.begin(noise[:, 0])
        states = [step.x for step in trajectory(guided(denoiser, given, null), x, plan, list(noise[:, 1:].unbind(1)))]
        sample = states[-1] if decoder is None else decoder(states[-1])
    return {name: value.numpy() for name, value in (inputs | {"states": torch.stack(states), "sample": sample}).items()}

"""What calibration draws: noise, and conditions to go with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.artifact.manifest import Manifest
from fewstep.data.conditions import Conditions
from fewstep.data.inputs import Arrays

__all__ = ["Drawn", "draw"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a plan starts from.

    Args:
        noise: unit normal, (B, draws, C, ...).
        condition: tensors of the inputs, (B, ...) each.
        null: those that mean "none", likewise; () where nothing does.
    """

    noise: Tensor
    condition: tuple[Tensor, ...]
    null: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, part: slice | Tensor) -> Drawn:
        """Some of them."""
        return Drawn(self.noise[part], tuple(c[part] for c in self.condition), tuple(c[part] for c in self.null))

    def to(self, device: torch.device) -> Drawn:
        """On a device."""
        return Drawn(self.noise.to(device), tuple(c.to(device) for c in self.condition), tuple(c.to(device) for c in self.null))


def draw(manifest: Manifest, samples: int, *, draws: int = 1, seed: int = 0, arrays: Arrays | None = None) -> Drawn:
    """Unit noise from a seed, with every label in turn or, where samples are made from arrays, every row of those in turn.

    Args:
        manifest: whose state and inputs they are for.
        samples: how many.
        draws: noise tensors of each, as many as a plan takes.
        seed: of the noise.
        arrays: by the names of inputs, (N, ...); see fewstep.data.conditions.

    Raises:
        ValueError: where some are needed and missing, or have other names or shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, draws, *manifest.state.shape, generator=generator)
    conditions = Conditions(manifest.signature.inputs, arrays)
    given = conditions.in_turn(samples)
    return Drawn(noise, given, conditions.null(given))

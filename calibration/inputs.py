"""What calibration draws: noise, and conditions to go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.artifact.manifest import Manifest
from fewstep.data.embeddings import checked_embeddings

__all__ = ["Inputs", "draw"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a plan starts from: noise (B, draws, C, H, W), the condition and the one that means "none"."""

    noise: Tensor
    condition: tuple[Tensor, ...]
    null: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, part: slice | Tensor) -> Inputs:
        """Some of them."""
        return Inputs(self.noise[part], tuple(c[part] for c in self.condition), tuple(c[part] for c in self.null))

    def to(self, device: torch.device) -> Inputs:
        """On a device."""
        return Inputs(
            self.noise.to(device), tuple(c.to(device) for c in self.condition), tuple(c.to(device) for c in self.null)
        )


def draw(
    manifest: Manifest, samples: int, *, draws: int = 1, seed: int = 0, embeddings: Mapping[str, Tensor] | None = None
) -> Inputs:
    """Unit noise from a seed, with every label in turn or, where images are made from embeddings, each of those in turn.

    embeddings: by the names of the manifest's condition, (N, ...), and those that mean "none", null_..., (1, ...).
    Raises ValueError where there are no embeddings and some are needed, or they have other names or shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, draws, *manifest.state_shape, generator=generator)
    condition = manifest.condition
    given = checked_embeddings(condition, embeddings)
    if condition.kind != "embeddings":
        labels = (torch.arange(samples) % condition.classes,) if condition.classes else ()
        return Inputs(noise, labels, tuple(torch.full_like(label, condition.classes) for label in labels))
    drawn = {name: values[torch.arange(samples) % len(values)].float() for name, values in given.items()}
    return Inputs(noise, *(tuple(drawn[s.name] for s in specs) for specs in (condition.inputs(), condition.null_inputs())))

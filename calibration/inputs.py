"""What calibration draws: noise, and conditions to go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.manifest import Manifest

__all__ = ["Inputs", "draw", "read_embeddings"]


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
    if condition.kind != "embeddings":
        if embeddings:
            raise ValueError("this bundle makes images from no embeddings; leave them out")
        labels = (torch.arange(samples) % condition.classes,) if condition.classes else ()
        return Inputs(noise, labels, tuple(torch.full_like(label, condition.classes) for label in labels))
    given = dict(embeddings or {})
    wanted = {spec.name: spec.shape for spec in (*condition.inputs(), *condition.null_inputs())}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"images of this bundle are made from embeddings, which cannot be drawn at random; give {sorted(wanted)}, "
            f"got {sorted(given) or 'none'}"
        )
    for name, shape in wanted.items():
        if tuple(given[name].shape[1:]) != shape or not len(given[name]):
            raise ValueError(
                f"the embeddings {name} have shape (N, {', '.join(map(str, shape))}), got {tuple(given[name].shape)}"
            )
    drawn = {name: values.float()[torch.arange(samples) % len(values)] for name, values in given.items()}
    return Inputs(noise, *(tuple(drawn[s.name] for s in specs) for specs in (condition.inputs(), condition.null_inputs())))


def read_embeddings(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError for one that is not there or not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a safetensors file with the embeddings of some prompts")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from None

"""What images are made from while a network learns: labels, or the embeddings of prompts. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.artifact.manifest import Condition
from fewstep.data import Images
from fewstep.data.embeddings import checked_embeddings
from fewstep.trainer.draws import Draws

__all__ = ["Conditions"]

Given = tuple[Tensor, ...]  # the tensors of a condition, each (B, ...)


class Conditions:
    """Conditions of a run, on its device. Embeddings stay where they are; a batch of them is moved.

    Raises ValueError where there are no embeddings and some are needed, or they have other names or shapes.
    """

    def __init__(self, condition: Condition, embeddings: Mapping[str, Tensor] | None, device: torch.device) -> None:
        self.condition, self.device = condition, device
        self.embeddings = checked_embeddings(condition, embeddings)

    def of(self, labels: Tensor) -> Given:
        """Those of images with labels, or rows of prompts, (B,)."""
        if self.condition.kind == "embeddings":
            return tuple(self._rows(spec.name, labels) for spec in self.condition.inputs())
        return (labels.to(self.device),) if self.condition.kind == "labels" else ()

    def random(self, draws: Draws) -> Given:
        """Any, each as likely as the others."""
        if self.condition.kind == "none":
            return ()
        return self.of(draws.integers(self.count))

    @property
    def count(self) -> int:
        """How many there are."""
        spec = self.condition.inputs()[0]
        return len(self.embeddings[spec.name]) if self.condition.kind == "embeddings" else self.condition.classes

    def check(self, images: Images) -> None:
        """Raises ValueError where images have labels, or rows of prompts, that there are not."""
        if self.condition.kind != "none" and int(images.labels.max()) >= self.count:
            raise ValueError(
                f"{images.source} has the label {images.labels.max()}, of {self.count} prompts; labels are their rows"
            )

    def null(self, given: Given) -> Given:
        """The condition that means "none", as often as there are images."""
        if self.condition.kind == "embeddings":
            names = [spec.name for spec in self.condition.null_inputs()]
            none = torch.zeros(1, dtype=torch.int64)
            return tuple(self._rows(name, none).expand_as(c) for name, c in zip(names, given, strict=True))
        return tuple(torch.full_like(label, self.condition.classes) for label in given)

    def dropped(self, given: Given, share: float, draws: Draws) -> Given:
        """Given ones, of which about that share means "none"."""
        if not given:
            return ()
        drop = draws.uniform() < share
        return tuple(
            torch.where(drop.reshape(-1, *(1,) * (c.ndim - 1)), none, c)
            for c, none in zip(given, self.null(given), strict=True)
        )

    def _rows(self, name: str, index: Tensor) -> Tensor:
        return self.embeddings[name][index.cpu()].to(self.device, torch.float32)

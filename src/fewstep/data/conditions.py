"""What samples are made from, in torch: classes, or rows of arrays that were given. Needs torch.

Training, distilling, fitting and evaluating draw from one table: a class is any, arrays are rows of what was given, the same
row of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from fewstep.artifact.signature import Input
from fewstep.data.inputs import Arrays, checked_arrays, in_rows
from fewstep.data.samples import Samples

__all__ = ["Conditions", "Given"]

Given = tuple[Tensor, ...]  # the tensors of the inputs, each (B, ...), in the order of the signature


class Conditions:
    """Inputs of a signature on a device. Arrays stay in memory; a batch of them is moved.

    Args:
        inputs: of the signature.
        arrays: by the names of inputs, (N, ...), and of what means "none" for those that bring it, (1, ...); for inputs that
            cannot all be drawn at random.
        device: where batches go.

    Raises:
        ValueError: where arrays are missing, or have other names or shapes.
    """

    def __init__(self, inputs: Sequence[Input], arrays: Arrays | None = None, device: torch.device | str = "cpu") -> None:
        self.inputs, self.device = tuple(inputs), torch.device(device)
        self.arrays = checked_arrays(inputs, arrays)

    @property
    def count(self) -> int:
        """How many there are: rows of arrays, or classes where there are classes alone; 0 for nothing."""
        if rows := in_rows(self.inputs):
            return len(self.arrays[rows[0].name])
        return prod(each.choices or 0 for each in self.inputs) if self.inputs else 0

    def of(self, numbers: Tensor) -> Given:
        """Those of samples that are numbered (B,): by their class, or by the row of their arrays."""
        if self.arrays:
            return tuple(self._rows(each.name, numbers) for each in self.inputs)
        found, numbers = [], numbers.to(self.device)
        for each in self.inputs:  # digits of the number, the first input's the lowest
            found.append(numbers % (each.choices or 1))
            numbers = numbers // (each.choices or 1)
        return tuple(found)

    def check(self, samples: Samples) -> None:
        """Raises ValueError where samples have classes, or rows of arrays, that there are not."""
        if self.inputs and int(samples.labels.max()) >= self.count:
            what = "rows of the arrays that were given" if self.arrays else "classes"
            raise ValueError(f"{samples.source} has the label {samples.labels.max()}, of {self.count} {what}")

    def random(self, integers: Callable[[int], Tensor]) -> Given:
        """Any, each as likely as the others. integers: draws (B,) whole numbers below its argument."""
        return self.of(integers(self.count)) if self.inputs else ()

    def in_turn(self, count: int) -> Given:
        """Every one in turn."""
        return self.of(torch.arange(count) % self.count) if self.inputs else ()

    def null(self, given: Given) -> Given:
        """What means "none", as often as there are samples; () where nothing does."""
        if not all(each.guidable for each in self.inputs):
            return ()
        return tuple(self._none(each, value) for each, value in zip(self.inputs, given, strict=True))

    def dropped(self, given: Given, share: float, uniform: Callable[[], Tensor]) -> Given:
        """Given ones, of which about that share means "none"; as they are where nothing does.

        Args:
            given: tensors of the inputs, (B, ...) each.
            share: 0 to 1.
            uniform: draws (B,) numbers in 0 .. 1.
        """
        null = self.null(given)
        if not null:
            return given
        drop = uniform() < share
        return tuple(
            torch.where(drop.reshape(-1, *(1,) * (value.ndim - 1)), none, value)
            for value, none in zip(given, null, strict=True)
        )

    def _none(self, each: Input, value: Tensor) -> Tensor:
        if each.null_tensor:
            return self._rows(each.null_tensor.name, torch.zeros(1, dtype=torch.int64)).expand_as(value)
        assert each.null_constant is not None, "guidable inputs have one or the other"
        return torch.from_numpy(np.asarray(each.null_constant)).to(value).expand_as(value)

    def _rows(self, name: str, numbers: Tensor) -> Tensor:
        return torch.from_numpy(self.arrays[name][numbers.cpu().numpy()]).to(self.device)

"""What a backend offers: a program, loaded once, and bindings of it to buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Binding", "ExactBinding", "Program", "RunError", "Tensor", "buffers", "first_rows"]

Array: TypeAlias = npt.NDArray[Any]


class RunError(RuntimeError):
    """A backend failed while it ran: no memory, a lost device, an input it has no kernel for."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a program.

    Args:
        dtype: of its numbers.
        shape: with None for the batch, which only comes first.
    """

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def at(self, batch: int) -> tuple[int, ...]:
        """The shape at a batch size."""
        return tuple(batch if size is None else size for size in self.shape)


class Binding(Protocol):
    """Buffers of one batch size. Write inputs in place, run, read outputs in place; one call at a time."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Arrays by name, to be written."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Arrays by name, to be read."""

    def run(self) -> None:
        """Compute outputs from inputs. Returns when they are there. Raises RunError where the backend fails."""


class ExactBinding(Binding, Protocol):
    """A binding of a program that is exact."""

    def narrowed(self, batch: int) -> ExactBinding:
        """A binding of a smaller batch to the first rows of the same buffers."""


class Program(Protocol):
    """A graph or engine with its weights in memory once, however many bindings there are.

    concurrent: bindings may run at the same time. exact: any batch size runs as it is, and bindings are ExactBindings; else a
    batch is filled up to one of the sizes that were warmed up.
    """

    concurrent: bool
    exact: bool

    @property
    def about(self) -> str:
        """How it runs here and why so, in words; "" where there is nothing to choose."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """By name."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """By name."""

    def takes(self, batch: int) -> bool:
        """Whether a binding of this batch size can be made."""

    def bind(self, batch: int) -> Binding:
        """New buffers for a batch size."""

    def prepare(self, first_s: Mapping[int, float], /) -> bool:
        """Measure how it runs fastest; whether bindings that are made from now on run in another way than those before.

        first_s: seconds of the first call of each batch size.
        """


def first_rows(tensors: Mapping[str, Tensor], arrays: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Views of the first rows of buffers; what has no batch as it is.

    Args:
        tensors: what a program takes or gives, by name.
        arrays: its buffers, by the same names.
        batch: how many rows.
    """
    return {name: array[:batch] if tensors[name].shape[:1] == (None,) else array for name, array in arrays.items()}


def buffers(tensors: Mapping[str, Tensor], batch: int) -> dict[str, Array]:
    """Zeroed arrays of a batch size in ordinary memory.

    Args:
        tensors: what a program takes or gives, by name.
        batch: how many rows.

    Raises:
        RunError: where there is not as much memory.
    """
    try:
        return {name: np.zeros(tensor.at(batch), tensor.dtype) for name, tensor in tensors.items()}
    except MemoryError as error:
        raise RunError(f"there is no memory for a batch of {batch} ({error})") from None

"""Batches as bindings: which sizes there are, and who has one in use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, cast

from fewstep.artifact.engines import LARGEST_BATCH
from fewstep.backends.base import Binding, ExactBinding, Program

__all__ = ["BUCKETS", "Pool", "buckets_to", "parts"]


def buckets_to(largest: int) -> list[int]:
    """Powers of two below the largest batch, and that."""
    return [1 << i for i in range((largest - 1).bit_length())] + [largest]


BUCKETS = tuple(buckets_to(LARGEST_BATCH))


def parts(batch: int, buckets: Sequence[int], *, exact: bool) -> list[tuple[int, int, int]]:
    """A batch as (begin, end, bucket) of the bindings it runs in: the largest as often as it fits, then one for the rest.

    Args:
        batch: how many samples, 1 or more.
        buckets: sizes of bindings, increasing.
        exact: the rest runs as it is; else in the smallest bucket that holds it.
    """
    largest = buckets[-1]
    found = [(begin, begin + largest, largest) for begin in range(0, batch - largest + 1, largest)]
    if rest := batch % largest:
        found.append((batch - rest, batch, rest if exact else next(b for b in buckets if b >= rest)))
    return found


class Pool:
    """Buffers of a program, each in use by one thread at a time. There are as many as were ever in use at once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._free: list[_Slot] = []
        self._turn: AbstractContextManager[Any] = nullcontext() if program.concurrent else Lock()

    def borrow(self, batch: int) -> Lease:
        """For a with statement: a binding for a batch size, for this thread alone."""
        return Lease(self.program, self._free, batch, self._turn)


class _Slot:
    """Bindings of one thread at a time. Where any batch size runs as it is, all are views of the buffers of the largest."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._bindings: dict[int, Binding] = {}

    def at(self, batch: int) -> Binding:
        """The binding for a batch size."""
        found = self._bindings.get(batch)
        return self._bind(batch) if found is None else found

    def _bind(self, batch: int) -> Binding:
        largest = max(self._bindings, default=0)
        if not self._program.exact:
            made = self._program.bind(batch)
        elif batch < largest:
            made = cast("ExactBinding", self._bindings[largest]).narrowed(batch)
        else:
            self._bindings.clear()  # the smaller buffers go before the larger ones come
            made = self._program.bind(batch)
        self._bindings[batch] = made
        return made


class Lease:
    """Pool.borrow's. A class, for it costs a call less Python than @contextmanager."""

    def __init__(self, program: Program, free: list[_Slot], batch: int, turn: AbstractContextManager[Any]) -> None:
        self._program, self._free, self._batch, self._turn = program, free, batch, turn

    def __enter__(self) -> Binding:
        self._turn.__enter__()
        try:
            self._slot = self._free.pop()
        except IndexError:
            self._slot = _Slot(self._program)
        try:
            return self._slot.at(self._batch)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._free.append(self._slot)
        self._turn.__exit__(None, None, None)

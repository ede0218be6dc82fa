"""Batches as bindings: which sizes there are, and who has one in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock

from fewstep.runtime.backends.base import Binding, Program

__all__ = ["BUCKETS", "Pool", "parts"]

BUCKETS = (1, 2, 4, 8, 16, 32)


def parts(batch: int, buckets: Sequence[int], *, exact: bool) -> list[tuple[int, int, int]]:
    """A batch as (begin, end, bucket) of the bindings it runs in: the largest as often as it fits, then one for the rest.

    exact: the rest runs as it is; else in the smallest bucket that holds it.
    """
    largest = buckets[-1]
    found = [(begin, begin + largest, largest) for begin in range(0, batch - largest + 1, largest)]
    if rest := batch % largest:
        found.append((batch - rest, batch, rest if exact else next(b for b in buckets if b >= rest)))
    return found


class Pool:
    """Bindings of a program, each in use by one thread at a time. There are as many as were ever in use at once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._free: defaultdict[int, list[Binding]] = defaultdict(list)
        self._turn = nullcontext() if program.concurrent else Lock()

    @contextmanager
    def borrow(self, batch: int) -> Iterator[Binding]:
        """A binding for a batch size, for this thread alone."""
        with self._turn:
            free = self._free[batch]
            try:
                binding = free.pop()
            except IndexError:
                binding = self.program.bind(batch)
            try:
                yield binding
            finally:
                free.append(binding)

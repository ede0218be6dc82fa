"""How long work reports where it is.

Loops take a Track and wrap their steps in it. Work whose steps are not ours to loop over takes a Meter: a block that gets a
Report to call with the share done, 0 to 1, and what is going on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

__all__ = ["Meter", "Report", "Track", "noted", "silent", "unsaid", "unseen"]

Track: TypeAlias = Callable[[Sequence[int], str], Iterable[int]]
Report: TypeAlias = Callable[[float, str], None]
Meter: TypeAlias = Callable[[str], AbstractContextManager[Report]]


def silent(steps: Sequence[int], what: str) -> Iterable[int]:  # noqa: ARG001
    """The Track that shows nothing.

    Args:
        steps: given back as they are.
        what: the work, in words.
    """
    return steps


def unsaid(line: str) -> None:
    """Where lines for people go that nobody is to read."""


def noted(track: Track, lines: Iterable[str], note: Callable[[str], None]) -> Track:
    """A track that first notes lines about what work is done on: as the work begins, for it may be refused before.

    Args:
        track: what shows the work.
        lines: each is noted once, before the first step.
        note: where a line goes.
    """
    left = iter(lines)

    def told(steps: Sequence[int], what: str) -> Iterable[int]:
        for line in left:
            note(line)
        return track(steps, what)

    return told


@contextmanager
def unseen(what: str) -> Iterator[Report]:  # noqa: ARG001
    """The Meter that shows nothing."""
    yield lambda _done, _phase: None

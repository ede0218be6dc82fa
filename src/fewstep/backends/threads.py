"""How many threads a graph runs fastest with on this CPU, measured here: small networks lose by every thread they share with.

The search begins at all cores and halves, for the more work there is the more threads pay; it ends where fewer are slower. The
number belongs to a session of ONNX Runtime, so another number is another session with weights of its own; the losers go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, TypeVar

from fewstep.system.cores import usable_cores

__all__ = ["Sessions", "fewest"]

AS_FAST = 1.05  # fewer threads are taken where they are this close: what they leave is for others
BURST_S, ROUNDS, LEAST_ROUNDS = 0.004, 11, 2
MOST = 256  # threads, or as many as there are cores: thousands would never start
LARGE_S = 0.5  # a first call that takes this long has work for all cores
BUDGET_S = 10.0  # later nothing else is tried

Session = TypeVar("Session")
Run = Callable[[], object]


class Sessions(Generic[Session]):
    """Sessions of one graph: the first with a thread for each core that may be used, or with the threads that were asked for.

    about: how many threads, and why, in words. Raises ValueError for a number of threads that is none.
    """

    def __init__(self, open_with: Callable[[int], Session], threads: int | None) -> None:
        self._cores = usable_cores()
        if threads is not None and not 1 <= threads <= max(MOST, self._cores):
            raise ValueError(
                f"a graph runs with 1 to {max(MOST, self._cores)} threads, got {threads}; {self._cores} may be used"
            )
        self._open, self._asked = open_with, threads is not None
        first, begin = threads or self._cores, time.perf_counter()
        self._sessions = {1: open_with(first)}  # by the batch size from which on they run
        self._opened_s = time.perf_counter() - begin
        why = "you asked for that" if self._asked else f"as many as cores may be used{', unmeasured' * (self._cores > 1)}"
        self.about = f"threads: {first} ({why})"

    def at(self, batch: int) -> Session:
        """The session for a batch."""
        sessions = self._sessions
        return sessions[max(size for size in sessions if size <= batch)]

    def choose(self, first_s: Mapping[int, float], run_in: Callable[[Session, int], Run]) -> bool:
        """Measure which number of threads is best for each batch size; whether that changes anything.

        Nothing is measured where threads were asked for, or there is one core.

        Args:
            first_s: seconds of the first call, by batch size.
            run_in: what runs the graph in a session on a batch.
        """
        if self._asked or self._cores == 1:
            return False
        tried, until = {self._cores: self.at(1)}, time.perf_counter() + BUDGET_S - self._opened_s
        found: dict[int, int] = {}  # threads by batch size

        def run_with(batch: int, threads: int) -> Run:
            if threads not in tried:
                tried[threads] = self._open(threads)
            return run_in(tried[threads], batch)

        for batch in sorted(first_s):
            large = first_s[batch] > LARGE_S
            best = self._cores if large else fewest(self._cores, partial(run_with, batch), until)
            found[batch if found else 1] = best
            if best == self._cores:  # a larger batch has more work for each
                break
        changes = {size: n for (size, n), before in zip(found.items(), [0, *found.values()], strict=False) if n != before}
        self._sessions = {size: tried[n] for size, n in changes.items()}
        words = [f"{n} from a batch of {size} on" if size > 1 else str(n) for size, n in changes.items()]
        self.about = f"threads: {', '.join(words)} (measured; {self._cores} may be used)"
        return changes != {1: self._cores}


def fewest(cores: int, run_with: Callable[[int], Run], until: float) -> int:
    """The smallest number of threads that is as fast as any, of all cores, half of them, and so on to one.

    Args:
        cores: that may be used.
        run_with: what runs the graph with a number of threads.
        until: time.perf_counter() after which no other number is tried.
    """
    fastest = chosen = cores
    while (threads := chosen // 2) and time.perf_counter() < until:
        slower = _over(run_with(threads), run_with(fastest), until)
        if slower > AS_FAST:
            break
        chosen = threads
        fastest = threads if slower < 1 else fastest
    return chosen


def _over(one: Run, other: Run, until: float) -> float:
    """Seconds of one over seconds of the other: both run in turn, and the best of each counts, which other load met least."""
    count = max(1, int(BURST_S / min(_seconds(other, 1), _seconds(one, 1))))
    rounds: list[tuple[float, float]] = []
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < ROUNDS and time.perf_counter() < until):
        rounds.append((_seconds(one, count), _seconds(other, count)))
    return min(seconds for seconds, _ in rounds) / min(seconds for _, seconds in rounds)


def _seconds(run: Run, count: int) -> float:
    """Of `count` calls, after one that fills the caches that others emptied."""
    run()
    begin = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - begin

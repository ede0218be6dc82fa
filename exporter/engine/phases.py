"""Where a build is: TensorRT's phases, which nest and count their steps, as one share done and one line of text."""

from __future__ import annotations

import threading
from dataclasses import dataclass

__all__ = ["Phases"]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Follows what a progress monitor is told, from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}  # in the order they were entered
        self._lock = threading.Lock()
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins.

        Args:
            name: of the phase.
            parent: the phase that it is in, if any.
            steps: how many it announces.
        """
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> None:
        with self._lock:
            if phase := self._open.get(name):
                phase.done = min(phase.done + 1, phase.steps)

    def finish(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)

    def now(self) -> tuple[float, str]:
        """The share of steps done, each level counting within its parent's current step, and the innermost phase.

        Never falls: TensorRT opens phases it did not announce.
        """
        with self._lock:
            roots = [name for name, phase in self._open.items() if phase.parent not in self._open]
            if roots:
                self._reached = max(self._reached, self._share(roots[0]))
            innermost = next(reversed(self._open), None)
            phase = self._open[innermost] if innermost else None
            return self._reached, f"{innermost} {phase.done}/{phase.steps}" if phase else ""

    def _share(self, name: str) -> float:
        phase = self._open[name]
        inner = [self._share(n) for n, p in self._open.items() if p.parent == name]
        return min((phase.done + max(inner, default=0.0)) / phase.steps, 1.0)

"""What a server gives to whom: numbers, and the memory that all requests share."""

from __future__ import annotations

import sys
from typing import NamedTuple

from fewstep.runtime.batcher import FullError

__all__ = ["PROBES", "Budget", "Held", "ServerLimits", "connections_here"]

PROBES = ("/v2/health/live", "/v2/health/ready")  # answered whatever else there is to do
RETRY_S = 1.0
FILES_BESIDE = 128  # that a process needs open for other things than connections


class ServerLimits(NamedTuple):
    """Of a connection, of a request, and of all together. docs/serving.md has them in words."""

    silence_s: float = 10.0  # without a whole head, or without reading an answer
    pace: int = 64 << 10  # bytes of a long answer that a client takes a second, at least
    head_bytes: int = 32 << 10
    head_lines: int = 100
    body_s: float = 10.0
    body_bytes: int = 32 << 10  # of any request but /infer; what has no more is small
    tensor_bytes: int = 16 << 20  # of /infer, after inflating
    json_bytes: int = 4 << 20  # of them as JSON, with so many values and lists or objects
    json_values: int = 1 << 18
    json_lists: int = 1 << 14
    connections: int = 1024
    requests: int = 512  # that are being made
    bodies_bytes: int = 64 << 20  # in memory, of all requests that are not small; one alone may be larger
    answers_bytes: int = 256 << 20

    def of(self, path: str) -> int:
        """The bytes that a body may have."""
        return self.tensor_bytes if path.endswith("/infer") else self.body_bytes


class Budget:
    """Bytes of one kind that all requests together may hold. For one thread, that of the event loop."""

    def __init__(self, total: int, small: int, what: str) -> None:
        """small: bytes that every request may hold without counting. what: of which kind, for errors."""
        self.total, self.small, self.what, self.used = total, small, what, 0

    def hold(self) -> Held:
        """What one request holds, for a with statement."""
        return Held(self)


class Held:
    """Bytes of one request in a budget, given back at the end of a with statement."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._all, self._counted = budget, 0, 0

    def add(self, count: int) -> None:
        """Hold more bytes. Raises FullError where others leave no room for them."""
        budget, self._all = self._budget, self._all + count
        more = max(self._all - budget.small, 0) - self._counted
        if more and budget.used > self._counted and budget.used + more > budget.total:
            raise FullError(f"{budget.what} of other requests fill the {budget.total >> 20} MiB that there are", RETRY_S)
        self._counted += more
        budget.used += more

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.used -= self._counted
        self._counted = self._all = 0


def connections_here(most: int) -> int:
    """Connections that a server may hold, of so many: not more than this process may have files open."""
    if sys.platform == "win32":
        return most
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(16, min(most, soft - FILES_BESIDE))

"""Threads beside the event loop, for whatever grows with what a client sent or asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fewstep.runtime.batcher import DeadlineError, FullError

__all__ = ["Workers"]

RETRY_S = 1.0
T = TypeVar("T")


class Workers:
    """A few threads, and a bounded number of callers that wait for them. For one event loop."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, f"fewstep-{name}")
        self._most, self._callers = threads + waiting, 0

    async def __call__(self, work: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """What work returns. A caller that is cancelled takes its work out where it has not begun.

        Raises FullError where too many wait, DeadlineError where the time is over.
        """
        if self._callers >= self._most:
            raise FullError(f"{self._callers} requests wait to be read or written, which is all there may be", RETRY_S)
        self._callers += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(self._pool.submit(work))
        except TimeoutError:
            raise DeadlineError("the deadline passed before the answer was written") from None
        finally:
            self._callers -= 1

    def close(self) -> None:
        """Finish what is being done; for the end."""
        self._pool.shutdown(cancel_futures=True)

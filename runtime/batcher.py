"""Batcher: requests of many callers, joined into batches of one Generator."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition as Monitor
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.backends.base import Array
from fewstep.runtime.generator import Generator, Inputs

__all__ = ["Batcher", "ClosedError", "DeadlineError", "FullError"]

MAX_WAIT_MS = 60_000.0
MARGIN_S = 0.01  # a batch begins this long before the deadline of one that would wait for others beyond it


class FullError(RuntimeError):
    """There is no room. what: of what there is too much. retry_s: when there may be room again."""

    def __init__(self, what: str, retry_s: float) -> None:
        super().__init__(f"{what}; try again in {retry_s:.1f} s")
        self.retry_s = retry_s


class DeadlineError(TimeoutError):
    """A request's deadline passed before its batch began."""


class ClosedError(RuntimeError):
    """The batcher takes no more requests."""


@dataclass(eq=False)
class _Request:
    inputs: Inputs
    deadline: float
    future: Future[Array] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """First come, first served: a batch is what waited when the last one ended, up to max_batch samples.

    Calls are safe from many threads, and from asyncio.

    Args:
        generator: that makes the samples.
        max_batch: samples of a batch; those of its largest bucket unless given.
        max_request: samples in one request; one of more than max_batch has a batch of its own.
        wait_ms: how long a request may wait for others to join it while nothing else runs, up to its deadline and a minute at
            most; 0 starts at once.
        max_waiting: samples in the queue beyond which requests are refused.

    Raises:
        ValueError: for numbers that do not go together.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_batch: int | None = None,
        max_request: int | None = None,
        wait_ms: float = 0.0,
        max_waiting: int = 256,
    ) -> None:
        self.generator = generator
        self.max_batch = generator.buckets[-1] if max_batch is None else max_batch
        self.max_request = self.max_batch if max_request is None else max_request
        if self.max_batch < 1 or not 0 <= wait_ms <= MAX_WAIT_MS or max_waiting < max(self.max_batch, self.max_request):
            raise ValueError(
                f"a batcher needs max_batch >= 1, wait_ms in 0..{MAX_WAIT_MS:g} and max_waiting >= max_batch and max_request, "
                f"got {self.max_batch}, {wait_ms}, {max_waiting} and {self.max_request}"
            )
        self.wait_s, self.max_waiting = wait_ms / 1e3, max_waiting
        self.waiting = 0  # samples in the queue
        self.seconds_per_sample = 0.0  # a running mean
        self._queue: deque[_Request] = deque()
        self._monitor, self._closed = Monitor(), False
        self._thread = Thread(target=self._work, name="fewstep-batcher", daemon=True)
        self._thread.start()

    def submit(self, /, *, seeds: Sequence[int], timeout_s: float = float("inf"), **inputs: Any) -> Future[Array]:
        """Queue a request of at most max_request samples. Cancelling the future before its batch begins takes it out.

        Args:
            seeds: one for each sample.
            timeout_s: until the batch begins; when they pass before, the future raises DeadlineError.
            inputs: by the names of the signature, as `Generator.generate_into` takes them.

        Returns:
            A future of the output, (B, ...).

        Raises:
            ValueError: for bad input.
            FullError: where the queue is full, or what waits in it takes longer than timeout_s.
            ClosedError: after close.
        """
        return self.queue(self.prepare(seeds=seeds, **inputs), timeout_s)

    def prepare(self, /, *, seeds: Sequence[int] | npt.NDArray[np.uint64], **inputs: Any) -> Inputs:
        """Checked inputs of a request, for `queue`; the longer half of `submit`.

        Args:
            seeds: one for each sample.
            inputs: by the names of the signature, (B, ...).

        Raises:
            ValueError: for bad input, or more than max_request samples.
        """
        listed = seeds.tolist() if isinstance(seeds, np.ndarray) else seeds
        if isinstance(listed, Sized) and len(listed) > self.max_request:  # before anything looks at each
            raise ValueError(f"a request has at most {self.max_request} samples, got {len(listed)}")
        return self.generator.prepare(seeds=listed, **inputs)

    def queue(self, inputs: Inputs, timeout_s: float = float("inf")) -> Future[Array]:
        """Queue checked inputs.

        Args:
            inputs: of `prepare`.
            timeout_s: until the batch begins.

        Raises:
            ValueError: for what is no number of seconds.
            FullError: as `submit` does.
            ClosedError: after close.
        """
        if not isinstance(timeout_s, float | int) or timeout_s != timeout_s:
            raise ValueError(f"timeout_s is a number of seconds, got {timeout_s!r}")
        request, count = _Request(inputs, time.monotonic() + timeout_s), len(inputs.seeds)
        with self._monitor:
            if self._closed:
                raise ClosedError("this batcher is closed")
            wait_s = self.waiting * self.seconds_per_sample
            if self.waiting + count > self.max_waiting or wait_s > max(timeout_s, 0):  # it would not be served in time
                raise FullError(f"{self.waiting} samples are waiting, which is all the queue takes", max(0.1, wait_s))
            self._queue.append(request)
            self.waiting += count
            self._monitor.notify()
        request.future.add_done_callback(lambda future: self._drop(request) if future.cancelled() else None)
        return request.future

    async def generate(self, /, *, seeds: Sequence[int], timeout_s: float = float("inf"), **inputs: Any) -> Array:
        """What a request becomes, for asyncio; cancelling the task takes the request out.

        Args:
            seeds, timeout_s, inputs: as for `submit`.

        Raises:
            ValueError, FullError, ClosedError: as `submit` does.
            DeadlineError: when the time passes before the batch begins.
        """
        return await asyncio.wrap_future(self.submit(seeds=seeds, timeout_s=timeout_s, **inputs))

    def close(self) -> None:
        """Take no more requests, finish those that wait, and end the thread."""
        with self._monitor:
            self._closed = True
            self._monitor.notify()
        self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        try:
            while batch := self._next():
                begin = time.perf_counter()
                self._make(batch)
                seconds = (time.perf_counter() - begin) / sum(len(r.inputs.seeds) for r in batch)
                self.seconds_per_sample = 0.9 * self.seconds_per_sample + 0.1 * seconds if self.seconds_per_sample else seconds
        finally:  # whatever ends this thread, nobody waits for it in vain
            with self._monitor:
                self._closed = True
                while self._queue:
                    future = self._queue.popleft().future
                    if future.set_running_or_notify_cancel():
                        future.set_exception(ClosedError("this batcher has failed"))

    def _next(self) -> list[_Request]:
        """The requests of the next batch, in their order; none when closed and empty."""
        with self._monitor:
            while True:
                self._monitor.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                left = self._begins() - time.monotonic()
                if left > 0 and self.waiting < self.max_batch and not self._closed:
                    self._monitor.wait(left)
                elif batch := self._take():
                    return batch

    def _drop(self, request: _Request) -> None:
        """Take a cancelled request out of the queue, so that it takes nobody's place there."""
        with self._monitor:
            if request in self._queue:
                self._queue.remove(request)
                self.waiting -= len(request.inputs.seeds)

    def _begins(self) -> float:
        """When the next batch begins at the latest: before anyone in it has waited too long or is too late."""
        if not self.wait_s:
            return 0.0
        return min(self._queue[0].arrived + self.wait_s, min(r.deadline for r in self._queue) - MARGIN_S)

    def _take(self) -> list[_Request]:
        """The oldest requests that fit in a batch; those that were cancelled or are too late fall out."""
        batch: list[_Request] = []
        room, now = self.max_batch, time.monotonic()
        while self._queue and (len(self._queue[0].inputs.seeds) <= room or not batch):
            request = self._queue.popleft()
            self.waiting -= len(request.inputs.seeds)
            if not request.future.set_running_or_notify_cancel():
                continue
            if now > request.deadline:
                request.future.set_exception(DeadlineError("the deadline passed before the request's batch began"))
                continue
            batch.append(request)
            room -= len(request.inputs.seeds)
        return batch

    def _make(self, batch: Sequence[_Request]) -> None:
        try:
            made = self.generator.make(Inputs.joined([r.inputs for r in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one request must not spoil its neighbours
                for request in batch:
                    self._make([request])
            return
        end = 0
        for request in batch:
            begin, end = end, end + len(request.inputs.seeds)
            request.future.set_result(made[begin:end])

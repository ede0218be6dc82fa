"""Requests to samples: read, queued, made, written, each where it does not hold up the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np
from fastapi import Response

from fewstep.artifact.described import described_output
from fewstep.backends.base import Array
from fewstep.runtime.batcher import Batcher
from fewstep.runtime.generator import Inputs
from fewstep.runtime.server.asked import GenerateRequest, answer_bytes, written
from fewstep.runtime.server.coding import Coding
from fewstep.runtime.server.limits import Held, ServerLimits
from fewstep.runtime.server.metrics import Metrics
from fewstep.runtime.server.numbers import json_bytes
from fewstep.runtime.server.protocol import InferRequest, Outputs, answer, parse
from fewstep.runtime.server.repository import Repository
from fewstep.runtime.server.workers import Workers
from fewstep.system.cores import usable_cores

__all__ = ["Policy", "Service"]

T = TypeVar("T")
WAITING = 32  # requests for each of the workers


class Policy(NamedTuple):
    """timeout_s: for requests that name none. admin: whether models may be loaded and rolled back over HTTP. names: of this
    server beside localhost and addresses, in lower case; None where it may have any.
    """

    timeout_s: float = 10.0
    api_key: str | None = None
    admin: bool = False
    limits: ServerLimits = ServerLimits()
    names: frozenset[str] | None = None


class Service:
    """Requests to samples, counted. A request's deadline is for all of it: what would come too late is not worked for.

    What takes long in Python has one thread, for more would only let the event loop wait longer; encoders and compression,
    which do not hold it up, have as many as there are cores.
    """

    def __init__(self, repository: Repository, policy: Policy) -> None:
        self.repository, self.policy, self.limits, self.metrics = repository, policy, policy.limits, Metrics(repository)
        self.reader, self.writer = Workers("reader", 1, WAITING), Workers("writer", usable_cores(), WAITING)

    def close(self) -> None:
        """Finish what was accepted."""
        self.repository.close()
        self.reader.close()
        self.writer.close()

    async def infer(
        self, name: str, number: str | None, body: bytes, header_length: str | None, coding: Coding | None, held: Held
    ) -> Response:
        """The answer to a request of the protocol.

        Args:
            name: of the model.
            number: of its version; the current one for None.
            body: as it was sent, inflated.
            header_length: the header of that name.
            coding: what the answer is compressed in.
            held: for the bytes of the answer.

        Raises:
            ValueError: for what cannot be answered.
            UnknownError: for a model, version or plan there is not.
            LoadingError: before the model's first version is ready.
            FullError: where there is no room in a queue or for the answer.
            DeadlineError: when the request's time is over.
            NotFiniteError, RunError: where no sample can be made.
        """
        begin, version = time.monotonic(), self.repository.model(name).version(number)
        small = len(body) <= self.limits.body_bytes
        asked, tensors = await self._read(lambda: parse(body, header_length, self.limits), small)
        seeds = tensors.pop("seeds", None)
        if seeds is None or seeds.ndim != 1:
            raise ValueError("the input seeds is needed, UINT64 of shape [samples]")
        plan, timeout_us = asked.parameters.plan or version.default, asked.parameters.timeout
        end = begin + (self.policy.timeout_s if timeout_us is None else timeout_us / 1e6)
        batcher = version.batcher(plan)
        size = self._size(asked, len(seeds), batcher)
        with self.metrics.request(name, plan):
            inputs = await self._read(lambda: batcher.prepare(seeds=seeds, **tensors), small)
            held.add(size)
            made = await self._made(name, plan, batcher, inputs, end)
            output = described_output(batcher.generator.signature)
            outputs: Outputs = {output.name: (output.datatype, made)}
            content, headers = await self._written(
                lambda: answer(asked, name, str(version.number), outputs, coding), end, size <= self.limits.body_bytes
            )
        return Response(content, headers=headers)

    async def generate(self, asked: GenerateRequest, held: Held) -> Response:
        """The answer to POST /generate.

        Args:
            asked: the request.
            held: for the bytes of the answer.

        Raises:
            ValueError, UnknownError, LoadingError, FullError, DeadlineError, NotFiniteError, RunError: as `infer` does.
        """
        begin = time.monotonic()
        model = self.repository.model(asked.model or next(iter(self.repository.models)))
        version = model.version()
        plan, end = asked.plan or version.default, begin + self.policy.timeout_s
        batcher = version.batcher(plan)
        output = batcher.generator.signature.output
        size = answer_bytes(asked, output, self.limits.answers_bytes)
        with self.metrics.request(model.name, plan):
            inputs = await self._read(lambda: batcher.prepare(seeds=asked.seeds, **asked.inputs), asked.small)
            held.add(size)
            made = await self._made(model.name, plan, batcher, inputs, end)
            latency_ms = (time.monotonic() - begin) * 1e3
            body, kind = await self._written(lambda: written(made, asked, output), end, False)
        headers = {"X-Latency-Ms": f"{latency_ms:.2f}", "X-Model-Version": str(version.number)}
        return Response(body, media_type=kind, headers=headers)

    def _size(self, asked: InferRequest, count: int, batcher: Batcher) -> int:
        """Bytes of an answer. Raises ValueError for what cannot be answered, before it is made."""
        tensor = batcher.generator.signature.output.tensor
        asked.wanted((tensor.name,))
        if asked.binary(tensor.name):
            return count * prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        size = json_bytes(tensor, count)
        if size > self.limits.answers_bytes:
            raise ValueError(f"{count * prod(tensor.shape)} numbers are too many for an answer in JSON; ask for binary_data")
        return size

    async def _made(self, model: str, plan: str, batcher: Batcher, inputs: Inputs, end: float) -> Array:
        made = await asyncio.wrap_future(batcher.queue(inputs, end - time.monotonic()))
        self.metrics.samples.labels(model, plan).inc(len(made))
        return made

    async def _read(self, work: Callable[[], T], small: bool) -> T:
        return work() if small else await self.reader(work)

    async def _written(self, work: Callable[[], T], end: float, small: bool) -> T:
        return work() if small else await self.writer(work, timeout_s=end - time.monotonic())

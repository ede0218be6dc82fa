"""Prometheus metrics of a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fewstep.runtime.server.repository import Repository

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counted while serving; what waits in queues is read when somebody asks."""

    def __init__(self, repository: Repository) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fewstep_requests", "Requests by how they ended.", ["model", "plan", "outcome"], registry=self.registry
        )
        self.samples = Counter("fewstep_samples", "Samples made.", ["model", "plan"], registry=self.registry)
        self.seconds = Histogram(
            "fewstep_request_seconds",
            "From the request's arrival to its answer, of requests that were answered.",
            ["model", "plan"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Loaded(repository))

    @contextmanager
    def request(self, model: str, plan: str) -> Iterator[None]:
        """Count a request that is answered, or fails, in a with statement.

        Args:
            model, plan: by name, which there are.
        """
        begin, outcome = time.perf_counter(), "ok"
        try:
            yield
        except BaseException as error:
            outcome = "ClientLeft" if isinstance(error, asyncio.CancelledError) else type(error).__name__
            raise
        else:
            self.seconds.labels(model, plan).observe(time.perf_counter() - begin)
        finally:
            self.requests.labels(model, plan, outcome).inc()


class _Loaded(Collector):
    """Versions and their queues as they are now."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("fewstep_waiting_samples", "Samples in the queue.", labels=["model", "version", "plan"])
        current = GaugeMetricFamily("fewstep_current_version", "The version that answers.", labels=["model"])
        for model in list(self.repository.models.values()):
            current.add_metric([model.name], model.current)
            for version in list(model.versions.values()):
                for plan, batcher in version.batchers.items():
                    waiting.add_metric([model.name, str(version.number), plan], batcher.waiting)
        yield waiting
        yield current

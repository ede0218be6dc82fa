"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Iterator

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
        self.images = Counter("fewstep_images", "Images made.", ["model", "plan"], registry=self.registry)
        self.seconds = Histogram(
            "fewstep_request_seconds",
            "From the request's arrival to its images, of requests that were answered.",
            ["model", "plan"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Loaded(repository))


class _Loaded(Collector):
    """Versions and their queues as they are now."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("fewstep_waiting_images", "Images in the queue.", labels=["model", "version", "plan"])
        current = GaugeMetricFamily("fewstep_current_version", "The version that answers.", labels=["model"])
        for model in list(self.repository.models.values()):
            current.add_metric([model.name], model.current)
            for version in list(model.versions.values()):
                for plan, batcher in version.batchers.items():
                    waiting.add_metric([model.name, str(version.number), plan], batcher.waiting)
        yield waiting
        yield current

"""A Ray Serve application: replicas of one bundle, each with the same HTTP interface and batchers as `fewstep serve`.

serve.yaml names `application` here; other deployments may hold a handle and call `generate`.
"""

# Ray reads the annotation of `application`, which must not be a string: no `from __future__ import annotations` here.
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema
from starlette.types import ASGIApp

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.artifact.spec import Precision
from fewstep.backends.base import Array
from fewstep.runtime.selection import BACKENDS, Wanted, candidates
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.repository import Options, Repository
from fewstep.system.places import writing

__all__ = ["RaySettings", "Replicas", "application", "write_config"]


class RaySettings(BaseModel):
    """What a replica serves. bundle: a path that holds on every node. The rest as in the options of `fewstep serve`."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    plans: tuple[str, ...] = ()
    precision: Precision | None = None
    backend: str | None = None
    threads: int | None = None
    max_batch: int = Field(default=32, ge=1)
    max_samples: int = Field(default=64, ge=1)
    wait_ms: float = Field(default=0.0, ge=0)
    max_waiting: int = Field(default=256, ge=1)
    timeout_s: float = Field(default=10.0, gt=0)


class Replicas(BaseModel):
    """How many there may be, and what each takes of its node."""

    least: int = Field(default=1, ge=0)
    most: int = Field(default=4, ge=1)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


class Sampler:
    """One replica. Ray counts it as ready when every batch size of every plan ran once."""

    def __init__(self, settings: RaySettings) -> None:
        options = Options(
            settings.plans,
            settings.precision,
            settings.backend,
            settings.threads,
            settings.max_batch,
            settings.max_samples,
            settings.wait_ms,
            settings.max_waiting,
        )
        self.name, self.timeout_s = Bundle.load(settings.bundle).manifest.name, settings.timeout_s
        self.repository = Repository([(self.name, settings.bundle)], options)
        self.repository.load(self.name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self.repository, Policy(self.timeout_s, os.environ.get("FEWSTEP_API_KEY")))

    async def generate(self, /, *, seeds: Sequence[int], plan: str | None = None, **inputs: Any) -> Array:
        """Samples for a caller with a handle, from inputs by the signature's names.

        Raises what Batcher.submit and its future raise.
        """
        batcher = self.repository.model(self.name).version().batcher(plan)
        return await batcher.generate(seeds=seeds, timeout_s=self.timeout_s, **inputs)


def application(settings: RaySettings) -> Application:
    """What `import_path` of serve.yaml names; settings come from its `args`."""
    return serve.deployment(serve.ingress()(Sampler)).bind(settings)


def write_config(path: Path, settings: RaySettings, replicas: Replicas) -> None:
    """Write serve.yaml, checked by Ray Serve's own schema.

    A replica takes as many requests as wait in its queue and answers 503 beyond; more replicas come while more than one batch
    is asked for at each.

    Args:
        path: of serve.yaml.
        settings: of a replica; its bundle is looked at, and of the plans those that are named.
        replicas: how many, and what each takes.

    Raises:
        FileNotFoundError: where there is no bundle to serve.
        ValueError: where a named plan has no such graph, for a backend there is not, where the queue is shorter than a batch,
            or with fewer replicas at most than at least.
        OSError: where it cannot be written.
    """
    if replicas.least > replicas.most:
        raise ValueError(f"there are to be {replicas.least} replicas at least and {replicas.most} at most; raise the second")
    bundle = Bundle.load(settings.bundle)
    if settings.max_waiting < max(settings.max_batch, settings.max_samples):
        raise ValueError(
            f"a queue holds a batch and a request at least ({settings.max_batch} and {settings.max_samples} samples), "
            f"got max_waiting {settings.max_waiting}"
        )
    if settings.backend not in (None, *BACKENDS):
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, got {settings.backend!r}")
    for plan in settings.plans:
        bundle.pick("plan", plan, bundle.manifest.plans)
        for graph in candidates(bundle, Wanted(plan, precision=settings.precision)).values():
            check_files(bundle, bundle.manifest.graphs[graph])
    settings = settings.model_copy(update={"bundle": bundle.root})
    deployment = {
        "name": Sampler.__name__,
        "max_ongoing_requests": settings.max_waiting,
        "max_queued_requests": settings.max_waiting,
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": settings.max_batch,
        },
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    }
    config: dict[str, Any] = {
        "applications": [
            {
                "name": bundle.manifest.name,
                "route_prefix": "/",
                "import_path": f"{__name__}:{application.__name__}",
                "args": settings.model_dump(mode="json", exclude_unset=True),
                "deployments": [deployment],
            }
        ]
    }
    ServeDeploySchema.model_validate(config)
    with writing(path) as beside:
        beside.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")

"""The HTTP application. Errors are {"error": "one sentence"}; overload answers 503 with Retry-After at once."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import fewstep
from fewstep.runtime.backends.base import RunError
from fewstep.runtime.batcher import ClosedError, DeadlineError, FullError
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.server.describe import describe, metadata
from fewstep.runtime.server.guard import Guard, Limits
from fewstep.runtime.server.metrics import Metrics
from fewstep.runtime.server.pictures import GenerateRequest, encoded
from fewstep.runtime.server.protocol import HEADER_LENGTH, answer, parse
from fewstep.runtime.server.repository import LoadingError, Model, Repository, UnknownError, Version

__all__ = ["Policy", "create_app"]

PAGE = Path(__file__).parent / "page"
MAX_TIMEOUT_S = 3600.0


class Policy(NamedTuple):
    """timeout_s: for requests that name none. admin: whether models may be loaded and rolled back over HTTP."""

    timeout_s: float = 10.0
    api_key: str | None = None
    admin: bool = False
    limits: Limits = Limits()


def create_app(repository: Repository, policy: Policy) -> FastAPI:
    """The application over a repository, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(repository.close)  # whatever was accepted is made

    app = FastAPI(title="fewstep", version=fewstep.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, limits=policy.limits, api_key=policy.api_key)
    service = _Service(repository, policy)
    _errors(app)
    _protocol(app, service)
    if policy.admin:
        _admin(app, repository)
    _pictures(app, service)

    @app.get("/style.css", include_in_schema=False)
    def style() -> FileResponse:
        return FileResponse(str(resources.files("fewstep") / "style.css"))

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class _Service:
    """Requests to images, counted."""

    def __init__(self, repository: Repository, policy: Policy) -> None:
        self.repository, self.policy, self.metrics = repository, policy, Metrics(repository)

    async def images(
        self,
        model: Model,
        version: Version,
        plan: str | None,
        labels: Any,
        seeds: Any,
        embeddings: Mapping[str, npt.NDArray[Any]],
        timeout_s: float | None,
    ) -> npt.NDArray[np.uint8]:
        """Images of a request. Raises what Batcher.submit and its future raise."""
        batcher, begin = version.batcher(plan), time.perf_counter()
        names = model.name, plan or version.default
        try:
            timeout_s = self.policy.timeout_s if timeout_s is None else timeout_s
            images = await batcher.generate(labels, seeds=seeds, embeddings=embeddings, timeout_s=timeout_s)
        except Exception as error:
            self.metrics.requests.labels(*names, type(error).__name__).inc()
            raise
        self.metrics.requests.labels(*names, "ok").inc()
        self.metrics.images.labels(*names).inc(len(images))
        self.metrics.seconds.labels(*names).observe(time.perf_counter() - begin)
        return images


STATUS: dict[type[Exception], int] = {
    ValueError: 400,
    RequestValidationError: 400,
    UnknownError: 404,
    NotFiniteError: 500,
    RunError: 500,
    FullError: 503,
    ClosedError: 503,
    LoadingError: 503,
    DeadlineError: 504,
}


def _errors(app: FastAPI) -> None:
    async def reply(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": str(error.detail)}, error.status_code)
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        text = str(error)
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            text = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        wait = {"Retry-After": str(math.ceil(getattr(error, "retry_s", 1)))} if status == 503 else None
        return JSONResponse({"error": text}, status, wait)

    for kind in (*STATUS, HTTPException):
        app.add_exception_handler(kind, reply)


def _protocol(app: FastAPI, service: _Service) -> None:
    """The Open Inference Protocol."""
    repository = service.repository

    @app.get("/v2")
    def server() -> dict[str, Any]:
        return {"name": "fewstep", "version": fewstep.__version__, "extensions": ["binary_tensor_data", "model_repository"]}

    @app.get("/v2/health/live")
    def live() -> Response:
        return Response()

    @app.get("/v2/health/ready")
    def ready() -> Response:
        return Response(status_code=200 if repository.ready else 503)

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{number}")
    def model(name: str, number: str | None = None) -> dict[str, Any]:
        found = repository.model(name)
        return metadata(found, found.version(number))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{number}/ready")
    def model_ready(name: str, number: str | None = None) -> Response:
        repository.model(name).version(number)
        return Response()

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{number}/infer")
    async def infer(name: str, request: Request, number: str | None = None) -> Response:
        found = repository.model(name)
        version = found.version(number)
        asked, tensors = parse(await request.body(), request.headers.get(HEADER_LENGTH))
        seeds, labels = tensors.pop("seeds", None), tensors.pop("labels", None)
        if seeds is None or seeds.ndim != 1:
            raise ValueError("the input seeds is needed, UINT64 of shape [images]")
        plan, timeout = asked.parameters.get("plan"), asked.parameters.get("timeout")
        if plan is not None and not isinstance(plan, str):
            raise ValueError(f"the parameter plan is a name, got {plan!r}")
        if timeout is not None and not (isinstance(timeout, int) and 0 < timeout <= MAX_TIMEOUT_S * 1e6):
            raise ValueError(f"the parameter timeout is a whole number of microseconds up to an hour, got {timeout!r}")
        timeout_s = None if timeout is None else timeout / 1e6
        images = await service.images(found, version, plan, labels, seeds.tolist(), tensors, timeout_s)
        body, headers = answer(asked, name, str(version.number), {"images": ("UINT8", images)})
        return Response(body, headers=headers)


def _admin(app: FastAPI, repository: Repository) -> None:
    """Triton's model repository extension, and going back."""

    @app.post("/v2/repository/index")
    def index() -> list[dict[str, str]]:
        return [
            {"name": model.name, "version": str(number), "state": "READY", "reason": "current" * (number == model.current)}
            for model in repository.models.values()
            for number in model.versions
        ]

    @app.post("/v2/repository/models/{name}/load")
    def load(name: str) -> dict[str, Any]:
        return {"version": str(repository.load(name).number)}

    @app.post("/v2/repository/models/{name}/rollback")
    def rollback(name: str) -> dict[str, Any]:
        return {"version": str(repository.roll_back(name).number)}


def _pictures(app: FastAPI, service: _Service) -> None:
    """Images for people and browsers."""
    repository = service.repository

    @app.get("/models")
    def models() -> list[dict[str, Any]]:
        return [describe(model) for model in repository.models.values() if model.current]

    @app.post("/generate", response_class=Response)
    async def generate(asked: GenerateRequest) -> Response:
        model = repository.model(asked.model or next(iter(repository.models)))
        version = model.version()
        begin = time.perf_counter()
        images = await service.images(model, version, asked.plan, asked.labels, asked.seeds(), {}, None)
        latency_ms = (time.perf_counter() - begin) * 1e3
        body = await run_in_threadpool(encoded, images, asked)
        headers = {"X-Latency-Ms": f"{latency_ms:.2f}", "X-Model-Version": str(version.number)}
        return Response(body, media_type=f"image/{asked.format}", headers=headers)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

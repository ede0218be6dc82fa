"""The HTTP application. Errors are {"error": "one sentence"}; overload answers 503 with Retry-After at once."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import fewstep
from fewstep.runtime.backends.base import RunError
from fewstep.runtime.batcher import ClosedError, DeadlineError, FullError
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.server.describe import Description, Metadata, describe, metadata
from fewstep.runtime.server.guard import Guard, Limits
from fewstep.runtime.server.metrics import Metrics
from fewstep.runtime.server.pictures import GenerateRequest, check_size, encoded
from fewstep.runtime.server.protocol import HEADER_LENGTH, answer, parse
from fewstep.runtime.server.repository import LoadingError, Model, Repository, UnknownError, Version
from fewstep.runtime.server.schema import ERRORS, INFER, METRICS, PICTURE, TENSORS

__all__ = ["Policy", "create_app"]

HERE = resources.files("fewstep.runtime.server") / "page"
PAGE = {
    "/": (HERE / "index.html", "text/html"),
    "/playground.css": (HERE / "playground.css", "text/css"),
    "/playground.js": (HERE / "playground.js", "text/javascript"),
    "/style.css": (resources.files("fewstep") / "style.css", "text/css"),
}
HeaderLength = Annotated[str | None, Header(alias=HEADER_LENGTH, description="bytes of JSON, where tensors follow")]


class Policy(NamedTuple):
    """timeout_s: for requests that name none. admin: whether models may be loaded and rolled back over HTTP."""

    timeout_s: float = 10.0
    api_key: str | None = None
    admin: bool = False
    limits: Limits = Limits()


def create_app(repository: Repository, policy: Policy) -> FastAPI:
    """The application over a repository, which it closes when it ends. Raises ValueError for an empty API key."""
    if policy.api_key == "":
        raise ValueError("FEWSTEP_API_KEY is empty, which anyone can guess; set a key, or unset it to serve without one")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(repository.close)  # whatever was accepted is made

    app = FastAPI(
        title="fewstep",
        version=fewstep.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,  # to wherever the request's Host header says
    )
    app.add_middleware(Guard, limits=policy.limits, api_key=policy.api_key)
    service = _Service(repository, policy)
    _errors(app)
    _protocol(app, service)
    if policy.admin:
        _admin(app, repository)
    _pictures(app, service)
    _page(app)
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

    async def infer(self, name: str, number: str | None, body: bytes, header_length: str | None) -> Response:
        """The answer to a request of the protocol."""
        model = self.repository.model(name)
        version = model.version(number)
        asked, tensors = parse(body, header_length)
        seeds, labels = tensors.pop("seeds", None), tensors.pop("labels", None)
        if seeds is None or seeds.ndim != 1:
            raise ValueError("the input seeds is needed, UINT64 of shape [images]")
        timeout_us = asked.parameters.timeout
        timeout_s = None if timeout_us is None else timeout_us / 1e6
        images = await self.images(model, version, asked.parameters.plan, labels, seeds.tolist(), tensors, timeout_s)
        content, headers = answer(asked, name, str(version.number), {"images": ("UINT8", images)})
        return Response(content, headers=headers)


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
    async def reply(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        text = str(error)
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                text = "send JSON, with Content-Type: application/json"
            else:
                text = f"{'.'.join(str(part)[:80] for part in first['loc'])}: {first['msg']}"
        wait = {"Retry-After": str(math.ceil(getattr(error, "retry_s", 1)))} if status == 503 else None
        return JSONResponse({"error": text}, status, wait)

    for kind in (*STATUS, HTTPException):
        app.add_exception_handler(kind, reply)


# What does not wait is a coroutine: requests that do, in the few threads there are, must not hold up a probe.


def _protocol(app: FastAPI, service: _Service) -> None:
    """The Open Inference Protocol."""
    repository, one, versions = service.repository, "/v2/models/{name}", "/v2/models/{name}/versions/{number}"

    @app.get("/v2")
    async def server() -> dict[str, str | list[str]]:
        return {"name": "fewstep", "version": fewstep.__version__, "extensions": ["binary_tensor_data", "model_repository"]}

    @app.get("/v2/health/live", response_class=Response)
    async def live() -> Response:
        return Response()

    @app.get("/v2/health/ready", response_class=Response)
    async def ready() -> Response:
        if not repository.ready:
            raise LoadingError("models are still loading")
        return Response()

    @app.get(one, response_model_exclude_none=True)
    async def model(name: str) -> Metadata:
        found = repository.model(name)
        return metadata(found, found.version())

    @app.get(versions, response_model_exclude_none=True)
    async def model_version(name: str, number: str) -> Metadata:
        found = repository.model(name)
        return metadata(found, found.version(number))

    @app.get(f"{one}/ready", response_class=Response)
    async def model_ready(name: str) -> Response:
        repository.model(name).version()
        return Response()

    @app.get(f"{versions}/ready", response_class=Response)
    async def version_ready(name: str, number: str) -> Response:
        repository.model(name).version(number)
        return Response()

    @app.post(f"{one}/infer", response_class=Response, openapi_extra=INFER, responses=TENSORS)
    async def infer(name: str, request: Request, length: HeaderLength = None) -> Response:
        return await service.infer(name, None, await request.body(), length)

    @app.post(f"{versions}/infer", response_class=Response, openapi_extra=INFER, responses=TENSORS)
    async def infer_version(name: str, number: str, request: Request, length: HeaderLength = None) -> Response:
        return await service.infer(name, number, await request.body(), length)


def _admin(app: FastAPI, repository: Repository) -> None:
    """Triton's model repository extension, and going back."""

    @app.post("/v2/repository/index")
    async def index() -> list[dict[str, str]]:
        return [
            {"name": model.name, "version": str(number), "state": "READY", "reason": "current" * (number == model.current)}
            for model in repository.models.values()
            for number in model.versions
        ]

    @app.post("/v2/repository/models/{name}/load")
    def load(name: str) -> dict[str, str]:
        model = repository.model(name)
        try:
            return {"version": str(repository.load(name).number)}
        except (ValueError, OSError) as error:  # where it lies is no business of clients
            text = str(error).replace(str(model.path.resolve()), name).replace(str(model.path), name)
            raise ValueError(text) from None

    @app.post("/v2/repository/models/{name}/rollback")
    async def rollback(name: str) -> dict[str, str]:
        return {"version": str(repository.roll_back(name).number)}


def _pictures(app: FastAPI, service: _Service) -> None:
    """Images for people and browsers."""
    repository = service.repository

    @app.get("/models")
    async def models() -> list[Description]:
        return [describe(model) for model in repository.models.values() if model.current]

    @app.post("/generate", response_class=Response, responses=PICTURE)
    async def generate(asked: GenerateRequest) -> Response:
        model = repository.model(asked.model or next(iter(repository.models)))
        version = model.version()
        check_size(asked, version.bundle.manifest.image)
        begin = time.perf_counter()
        images = await service.images(model, version, asked.plan, asked.labels, asked.seeds(), {}, None)
        latency_ms = (time.perf_counter() - begin) * 1e3
        body = await run_in_threadpool(encoded, images, asked)
        headers = {"X-Latency-Ms": f"{latency_ms:.2f}", "X-Model-Version": str(version.number)}
        return Response(body, media_type=f"image/{asked.format}", headers=headers)

    @app.get("/metrics", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _page(app: FastAPI) -> None:
    """The playground: these files and no others."""
    for path, (file, kind) in PAGE.items():
        app.add_route(path, _file(file.read_bytes(), kind))


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer

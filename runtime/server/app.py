"""The HTTP application. Errors are {"error": "one sentence"}; overload answers 503 with Retry-After at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated

from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import fewstep
from fewstep.runtime.server.asked import GenerateRequest
from fewstep.runtime.server.coding import accepted
from fewstep.runtime.server.describe import Description, Metadata, VersionState, describe, metadata, states
from fewstep.runtime.server.errors import handle_errors
from fewstep.runtime.server.guard import ANSWER, Guard
from fewstep.runtime.server.protocol import HEADER_LENGTH
from fewstep.runtime.server.repository import LoadingError, Repository
from fewstep.runtime.server.schema import ERRORS, INFER, MADE, METRICS, TENSORS
from fewstep.runtime.server.service import Policy, Service

__all__ = ["Policy", "create_app"]

HERE = resources.files("fewstep.runtime.server") / "page"
PAGE = {
    "/": (HERE / "index.html", "text/html"),
    "/playground.css": (HERE / "playground.css", "text/css"),
    "/playground.js": (HERE / "playground.js", "text/javascript"),
    "/style.css": (resources.files("fewstep") / "style.css", "text/css"),
}
HeaderLength = Annotated[str | None, Header(alias=HEADER_LENGTH, description="bytes of JSON, where tensors follow")]


def create_app(repository: Repository, policy: Policy) -> FastAPI:
    """The application over a repository, which it closes when it ends.

    Args:
        repository: of the models.
        policy: who may do what, and how much.

    Raises:
        ValueError: for an API key that is none.
    """
    key = policy.api_key
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        what = "is empty, which anyone can guess" if not key else "holds white space or other than ASCII, which a header loses"
        raise ValueError(f"FEWSTEP_API_KEY {what}; set a key, or unset it to serve without one")
    service = Service(repository, policy)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)  # whatever was accepted is made

    app = FastAPI(
        title="fewstep",
        version=fewstep.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,  # to wherever the request's Host header says
    )
    app.add_middleware(Guard, limits=policy.limits, api_key=key, names=policy.names, workers=service.reader)
    handle_errors(app)
    _protocol(app, repository)
    _inference(app, service)
    if policy.admin:
        _admin(app, repository)
    _samples(app, service)
    _page(app)
    return app


# What does not wait is a coroutine: requests that do, in the few threads there are, must not hold up a probe.


def _protocol(app: FastAPI, repository: Repository) -> None:
    """The Open Inference Protocol and Triton's repository index, but for inference."""
    one, versions = "/v2/models/{name}", "/v2/models/{name}/versions/{number}"

    @app.get("/v2")
    async def server() -> dict[str, str | list[str]]:
        return {"name": "fewstep", "version": fewstep.__version__, "extensions": ["binary_tensor_data", "model_repository"]}

    @app.head("/v2/health/live", include_in_schema=False)
    @app.get("/v2/health/live", response_class=Response)
    async def live() -> Response:
        return Response()

    @app.head("/v2/health/ready", include_in_schema=False)
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

    @app.head(f"{one}/ready", include_in_schema=False)
    @app.get(f"{one}/ready", response_class=Response)
    async def model_ready(name: str) -> Response:
        repository.model(name).version()
        return Response()

    @app.head(f"{versions}/ready", include_in_schema=False)
    @app.get(f"{versions}/ready", response_class=Response)
    async def version_ready(name: str, number: str) -> Response:
        repository.model(name).version(number)
        return Response()

    @app.post("/v2/repository/index")
    async def index(request: Request) -> list[VersionState]:
        return states(repository, await request.body())


def _inference(app: FastAPI, service: Service) -> None:
    """The Open Inference Protocol's inference."""

    async def infer(name: str, number: str | None, request: Request, length: str | None) -> Response:
        coding = accepted(request.headers.get("accept-encoding", ""))
        return await service.infer(name, number, await request.body(), length, coding, request.scope[ANSWER])

    @app.post("/v2/models/{name}/infer", response_class=Response, openapi_extra=INFER, responses=TENSORS)
    async def current(name: str, request: Request, length: HeaderLength = None) -> Response:
        return await infer(name, None, request, length)

    @app.post("/v2/models/{name}/versions/{number}/infer", response_class=Response, openapi_extra=INFER, responses=TENSORS)
    async def numbered(name: str, number: str, request: Request, length: HeaderLength = None) -> Response:
        return await infer(name, number, request, length)


def _admin(app: FastAPI, repository: Repository) -> None:
    """The changing half of Triton's model repository extension, and going back."""

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


def _samples(app: FastAPI, service: Service) -> None:
    """Samples for people and browsers."""
    repository = service.repository

    @app.get("/models")
    async def models() -> list[Description]:
        return [describe(model) for model in repository.models.values() if model.current]

    @app.post("/generate", response_class=Response, responses=MADE)
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        return await service.generate(asked, request.scope[ANSWER])

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

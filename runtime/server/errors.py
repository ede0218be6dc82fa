"""Errors as answers."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fewstep.backends.base import RunError
from fewstep.runtime.batcher import ClosedError, DeadlineError, FullError
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.server.repository import BusyError, LoadingError, UnknownError

__all__ = ["handle_errors"]

STATUS: dict[type[Exception], int] = {
    ValueError: 400,
    RequestValidationError: 400,
    UnknownError: 404,
    BusyError: 409,
    NotFiniteError: 500,
    RunError: 500,
    FullError: 503,
    ClosedError: 503,
    LoadingError: 503,
    DeadlineError: 504,
}


def handle_errors(app: FastAPI) -> None:
    """Answer every error that an application foresees with {"error": "one sentence"}."""

    async def reply(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        text = _wrong_body(request, error) if isinstance(error, RequestValidationError) else str(error)
        wait = {"Retry-After": str(math.ceil(getattr(error, "retry_s", 1)))} if status == 503 else None
        return JSONResponse({"error": text}, status, wait)

    for kind in (*STATUS, HTTPException):
        app.add_exception_handler(kind, reply)


def _wrong_body(request: Request, error: RequestValidationError) -> str:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        return "send JSON, with Content-Type: application/json"
    first = error.errors()[0]
    return f"{'.'.join(str(part)[:80] for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"

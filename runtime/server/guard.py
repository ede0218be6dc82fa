"""What stands before the application: an API key, a limit on bodies and on how long they may take, no traces to clients."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

__all__ = ["Guard", "Limits"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Probes carry no key, and the playground asks for it.
OPEN = ("/v2/health/live", "/v2/health/ready", "/", "/style.css", "/playground.css", "/playground.js")
log = logging.getLogger("fewstep.server")


class Limits(NamedTuple):
    """tensor_bytes: of a body with tensors. body_bytes: of any other. body_s: for a request's body to arrive."""

    tensor_bytes: int = 16 << 20
    body_bytes: int = 32 << 10
    body_s: float = 10.0

    def of(self, path: str) -> int:
        """The bytes that a body may have."""
        return self.tensor_bytes if path.endswith("/infer") else self.body_bytes


class Guard:
    """An ASGI middleware. It reads the whole body before the application sees the request."""

    def __init__(self, app: App, *, limits: Limits, api_key: str | None) -> None:
        self.app, self.limits = app, limits
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # no key has been asked for, and nothing here speaks it
            await send({"type": "websocket.close"})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refusal := self._refusal(scope["path"], headers):
            await _answer(send, *refusal)
            return
        limit = self.limits.of(scope["path"])
        try:
            body = await asyncio.wait_for(_body(receive, limit), self.limits.body_s)
        except TimeoutError:
            await _answer(send, 408, f"the body did not arrive within {self.limits.body_s:g} s")
        except ConnectionError:
            return  # what came of the body is not what was meant
        else:
            if body is None:
                await _answer(send, 413, f"a body has at most {limit} bytes here")
            else:
                await self._call(scope, receive, send, body)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self.key is not None and path not in OPEN:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            given = token if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self.key):
                return 401, "an API key is needed: Authorization: Bearer KEY"
        length, limit = headers.get(b"content-length", b"0"), self.limits.of(path)
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            return 413, f"a body has at most {limit} bytes here"
        if headers.get(b"content-encoding", b"identity") != b"identity":
            return 415, "send the body as it is, without Content-Encoding"
        return None

    async def _call(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        started = False

        async def replay() -> Message:
            return next(messages, None) or await receive()

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, replay, watched)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await _answer(send, 500, "the server failed; its log says why")


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The body; None when it grows too long. Raises ConnectionError where the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _answer(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status < 500:
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""What stands before the application: whose requests they are, an API key, limits on bodies, no traces to clients.

It reads the whole body before the application sees the request, and ends the application's work where the client leaves.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any

from fewstep.runtime.batcher import FullError
from fewstep.runtime.server.coding import Coding, Inflated, known
from fewstep.runtime.server.limits import PROBES, Budget, Held, ServerLimits
from fewstep.runtime.server.origin import check_origin
from fewstep.runtime.server.workers import Workers

__all__ = ["ANSWER", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = (*PROBES, "/", "/style.css", "/playground.css", "/playground.js")  # the playground asks for the key
ANSWER = "fewstep.answer"  # in a request's scope: Held, for the bytes of its answer
log = logging.getLogger("fewstep.server")


class _RefusedError(Exception):
    """Status and sentence of an answer."""


class Guard:
    """An ASGI middleware."""

    def __init__(
        self, app: App, *, limits: ServerLimits, api_key: str | None, names: Collection[str] | None, workers: Workers
    ) -> None:
        self.app, self.limits, self.names, self.workers = app, limits, names, workers
        self.key = None if api_key is None else api_key.encode()
        self.bodies = Budget(limits.bodies_bytes, limits.body_bytes, "bodies")
        self.answers = Budget(limits.answers_bytes, limits.body_bytes, "answers")
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # no key has been asked for, and nothing here speaks it
            await send({"type": "websocket.close"})
        else:
            try:
                with self.bodies.hold() as body, self.answers.hold() as scope[ANSWER]:
                    await self._answer(scope, receive, send, body)
            except _RefusedError as error:
                await _refuse(send, *error.args)
            except FullError as error:
                await _refuse(send, 503, str(error), error.retry_s)
            except ConnectionError:
                return  # what came of the body is not what was meant

    async def _answer(self, scope: Scope, receive: Receive, send: Send, held: Held) -> None:
        path, headers = scope["path"], [(name.lower(), value) for name, value in scope["headers"]]
        coding = self._look(path, headers)
        try:
            async with asyncio.timeout(self.limits.body_s):
                body = await _body(receive, self.limits.of(path), held)
        except TimeoutError:
            raise _RefusedError(408, f"the body did not arrive within {self.limits.body_s:g} s") from None
        if coding is not None:
            body = await self._inflated(body, coding, self.limits.of(path), held)
            kept = [(n, v) for n, v in headers if n not in (b"content-encoding", b"content-length", b"transfer-encoding")]
            scope["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
        await _Call(self, scope, receive, send).run(body)

    def _look(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Coding | None:
        """The coding of the body. Raises _RefusedError for a request that is not to be read."""
        found = dict(headers)
        if path not in PROBES and (refusal := check_origin(headers, self.names)):
            raise _RefusedError(*refusal)
        if self.key is not None and path not in OPEN:
            scheme, _, token = found.get(b"authorization", b"").partition(b" ")
            given = token if scheme.lower() == b"bearer" else found.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self.key):
                raise _RefusedError(401, "an API key is needed: Authorization: Bearer KEY")
        length, limit = found.get(b"content-length", b"0"), self.limits.of(path)
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise _RefusedError(413, f"a body has at most {limit} bytes here")
        try:
            return known(found.get(b"content-encoding", b"").decode("latin-1"))
        except ValueError as error:
            raise _RefusedError(415, str(error)) from None

    async def _inflated(self, body: bytes, coding: Coding, limit: int, held: Held) -> bytes:
        """A body out of its coding; each piece in a thread."""
        inflated, parts, length = Inflated(body, coding), [], 0
        try:
            while piece := await self.workers(inflated.piece):
                held.add(len(piece))
                parts.append(piece)
                length += len(piece)
                if length > limit:
                    raise _RefusedError(413, f"a body has at most {limit} bytes here, and this one inflates to more")
        except ValueError as error:
            raise _RefusedError(400, str(error)) from None
        return b"".join(parts)


class _Call:
    """One request in the application."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._begun = self._ended = False  # the answer

    async def run(self, body: bytes) -> None:
        """Answer, or stop where the client leaves before that."""
        if self._scope["method"] == "POST":
            await self._while_wanted(asyncio.create_task(self._work(body)))
        else:  # nothing that takes long
            await self._work(body)

    async def _while_wanted(self, work: asyncio.Task[None]) -> None:
        leaving = asyncio.create_task(self._left())
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not self._ended:
                work.cancel()
            await asyncio.wait((work,))
        finally:
            work.cancel()
            leaving.cancel()

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _work(self, body: bytes) -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await self._receive()

        try:
            if self._scope["path"] not in PROBES:
                async with self._guard.turn:  # one request in a turn of the event loop: between two it looks for probes
                    await asyncio.sleep(0)
            await self._guard.app(self._scope, replay, self._watched)
        except Exception:
            log.exception("%s %s", self._scope["method"], self._scope["path"])
            if not self._begun:
                await _refuse(self._watched, 500, "the server failed; its log says why")

    async def _watched(self, message: Message) -> None:
        """Send, and with the end of a long answer wait until it is read: until then it is held."""
        self._begun = True
        if message["type"] == "http.response.body" and not message.get("more_body"):
            if len(message["body"]) > self._guard.limits.body_bytes:
                await self._send({**message, "more_body": True})
                message = {"type": "http.response.body", "body": b""}
            self._ended = True
        await self._send(message)


async def _body(receive: Receive, limit: int, held: Held) -> bytes:
    """The body. Raises _RefusedError or FullError where it is too long, ConnectionError where the client left within it."""
    parts, length = [], 0  # a buffer that grows would be moved again and again, and leave holes in memory
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left")
            part = message.get("body", b"")
            length += len(part)
            if length > limit:
                raise _RefusedError(413, f"a body has at most {limit} bytes here")
            held.add(len(part))
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
    finally:
        parts.clear()  # an error keeps what is on its way up


async def _refuse(send: Send, status: int, error: str, retry_s: float | None = None) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status != 500:
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if retry_s is not None:
        headers.append((b"retry-after", str(math.ceil(retry_s)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

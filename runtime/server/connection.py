"""A connection: uvicorn's, with limits. What leans on uvicorn's insides is here alone, and a test names it.

A connection has one request at a time: what a client sends behind a whole request before it is answered is dropped, and the
connection closed behind the answer, as HTTP allows. So what one connection costs does not grow with what is sent on it.
"""

from __future__ import annotations

import json
import socket
from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fewstep.runtime.server.limits import PROBES, ServerLimits

__all__ = ["Connection", "Places"]

# Beside a body in chunks: what their sizes may cost at first, and per byte of body; pieces that a body may come in.
BESIDE_BYTES, BESIDE_SHARE = 64 << 10, 8
PIECES, PIECE_BYTES = 1024, 64


class Places:
    """The connections of a server. Where there are too many, one that waits for its client gives its place to a new one."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        # In the order in which they may go: without a request, with an answer that is not read, with half a body.
        self.idle: dict[Connection, None] = {}
        self.unread: dict[Connection, None] = {}
        self.reading: dict[Connection, None] = {}

    def move(self, connection: Connection, to: dict[Connection, None] | None) -> None:
        """A connection is now one of these, and the youngest.

        Args:
            connection: of the server.
            to: idle, unread or reading; None where its request is being made, or it has ended.
        """
        for group in (self.idle, self.unread, self.reading):
            group.pop(connection, None)
        if to is not None:
            to[connection] = None

    def make_room(self, count: int) -> None:
        """Close the connection that has waited longest where count are too many."""
        if count > self.limits.connections:
            oldest = next(iter(self.idle or self.unread or self.reading))
            self.move(oldest, None)
            oldest.transport.abort()


class _EnoughError(Exception):
    """Ends parsing."""


class Connection(HttpToolsProtocol):
    """A connection of uvicorn that is closed when it is silent, sends more than a request, or does not read its answer.

    Silent is who sends no whole head in time, from the connection's beginning or the last answer on.
    """

    _look: TimerHandle | None = None
    _over = False  # nothing that comes is looked at any more
    _head_is_whole = False
    _beside = _lines = _pieces = _body = 0  # of this request: bytes that are not its body, headers, parts and bytes of its body
    _refusal: tuple[HTTPStatus, str] | None = None

    def __init__(self, *arguments: Any, places: Places, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._places, self._limits = places, places.limits

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else an answer's body waits 40 ms for the client to acknowledge its head: asyncio does this for its own sockets only.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._places.move(self, self._places.idle)
        self._places.make_room(len(self.connections))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._places.move(self, None)
        if self._look:
            self._look.cancel()

    def data_received(self, data: bytes) -> None:
        self._beside += len(data)
        if self._over or self.transport.is_closing():
            if self._beside > BESIDE_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._over:
            self._beside = 0
        elif not self._head_is_whole and self._beside > self._limits.head_bytes:
            self._end(*self._long_head())
        elif self._head_is_whole and self._beside > BESIDE_BYTES + self._body // BESIDE_SHARE:
            self._end(HTTPStatus.BAD_REQUEST, "what is sent beside this body is too much of it; send larger chunks")

    def on_url(self, url: bytes) -> None:
        if self._is_answering():  # an empty line behind a body begins a message too, and is none
            raise _EnoughError
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of a head, or of a trailer, which is no header.

        Args:
            name, value: as they were sent.
        """
        self._lines += 1
        if self._lines > self._limits.head_lines:
            self._refuse(*self._long_head())
        if not self._head_is_whole:  # else a trailer, which is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.head_bytes:
            self._refuse(*self._long_head())
        places = self._places
        if len(self.tasks) - len(places.reading) - len(places.unread) >= self._limits.requests and not self._is_probe():
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self._limits.requests} requests are being made, which is all there may be"
            )
        super().on_headers_complete()
        self._head_is_whole = True
        if self.parser.should_upgrade():  # to nothing that is spoken here
            self._close_after_answer()
        places.move(self, places.reading)

    def on_body(self, body: bytes) -> None:
        self._beside -= len(body)
        self._body += len(body)
        self._pieces += 1
        if self._pieces > PIECES + self._body // PIECE_BYTES:
            self._refuse(
                HTTPStatus.BAD_REQUEST, f"the chunks of this body have less than {PIECE_BYTES} bytes each; send larger ones"
            )
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside = self._lines = self._pieces = self._body = 0
        self._head_is_whole = False
        super().on_message_complete()
        self._places.move(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._places.move(self, self._places.idle)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._places.move(self, self._places.unread)
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self in self._places.unread:
            self._places.move(self, None)

    def send_400_response(self, msg: str) -> None:
        """Where parsing ended: in this request, which gets an error, or behind it, which gets its answer."""
        if self._is_answering():
            self._over = True
            self._close_after_answer()
        else:
            self._end(*self._refusal or (HTTPStatus.BAD_REQUEST, msg))

    def _close_after_answer(self) -> None:
        """And say so in it, which older uvicorns leave to whoever sets keep_alive."""
        self.cycle.keep_alive = False
        self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def _is_answering(self) -> bool:
        """Whether there is a request that has come as a whole and is not answered."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _is_probe(self) -> bool:
        return self.url.partition(b"?")[0].decode("latin-1") in PROBES

    def _long_head(self) -> tuple[HTTPStatus, str]:
        limits = self._limits
        error = f"a head has at most {limits.head_lines} lines and {limits.head_bytes} bytes"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        """End parsing with an answer."""
        self._refusal = status, error
        raise _EnoughError

    def _end(self, status: HTTPStatus, error: str) -> None:
        """Answer and close: what comes now would belong to nothing."""
        self._over = True
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of another answer
            return
        body = json.dumps({"error": error}).encode()
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            head += "retry-after: 1\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
        self._watch()

    def _watch(self) -> None:
        if self._look:
            self._look.cancel()
        unread = self.transport.get_write_buffer_size()
        self._look = self.loop.call_later(self._limits.silence_s, self._close_if_silent, unread)

    def _close_if_silent(self, unread: int) -> None:
        """unread: bytes of answers that the client had not taken at the last look."""
        left = self.transport.get_write_buffer_size()
        if 0 < left <= unread - self._limits.pace * self._limits.silence_s:
            self._watch()
        elif left or self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

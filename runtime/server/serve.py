"""Run the application in uvicorn: load and warm up beside a server that already answers probes, drain on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import sys
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from threading import Thread

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.repository import Repository

__all__ = ["serve"]

SILENCE_S = 10.0
MAX_BESIDE_BYTES = 1 << 20
DRAIN_S = 60
MAX_CONNECTIONS = 1024


class _Protocol(HttpToolsProtocol):
    """A connection that is silent where uvicorn waits for ever, or that never ends a head, is closed.

    Silent is who sends no whole head in time, from the connection's beginning or the last answer on, and who does not read
    the answer. A head, and what else is sent beside a body (sizes of chunks, trailers), has a limit as the body has one.
    """

    _beside = 0  # bytes of the request that are not its body
    _look: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else an answer's body waits 40 ms for the client to acknowledge its head: asyncio does this for its own sockets only.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch(sys.maxsize)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._look:
            self._look.cancel()

    def data_received(self, data: bytes) -> None:
        self._beside += len(data)
        super().data_received(data)
        if self._beside > MAX_BESIDE_BYTES:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(sys.maxsize)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, in the form of all errors."""
        body = json.dumps({"error": msg}).encode()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
        self.transport.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _watch(self, unread: int) -> None:
        if self._look:
            self._look.cancel()
        self._look = self.loop.call_later(SILENCE_S, self._close_if_silent, unread)

    def _close_if_silent(self, unread: int) -> None:
        """unread: bytes of answers that the client had not taken at the last look."""
        left = self.transport.get_write_buffer_size()
        if 0 < left < unread:
            self._watch(left)
        elif left or self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def serve(repository: Repository, policy: Policy, *, host: str, port: int, report: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is answered. report takes a sentence for every step.

    Raises ValueError or OSError where a bundle cannot be served or the address is taken.
    """
    config = uvicorn.Config(
        create_app(repository, policy),
        http=_Protocol,
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = uvicorn.Server(config)
    try:
        listening = socket.create_server((host, port))  # before anything is loaded: a taken port is said at once
    except OSError as error:
        raise ValueError(f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port") from None
    failures: list[Exception] = []

    def load() -> None:
        try:
            for name in repository.models:
                version = repository.load(name)
                for plan, batcher in version.batchers.items():
                    made = batcher.generator
                    report(f"{name}, {plan}: {made.graph} on {made.backend}, first call {version.first_call_ms[plan]:.0f} ms")
            report(f"ready on http://{host}:{port}")
        except Exception as error:  # a server that will never be ready must not go on
            failures.append(error)
            server.should_exit = True

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has drained
    Thread(target=load, name="fewstep-loader", daemon=True).start()
    server.run(sockets=[listening])  # in uvloop where it is installed
    if failures:
        raise failures[0]

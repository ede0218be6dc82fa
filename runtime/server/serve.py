"""Run the application in uvicorn: load and warm up beside a server that already answers probes, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import socket
from asyncio import Transport
from collections.abc import Callable
from threading import Thread

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.repository import Repository

__all__ = ["serve"]

HEADERS_S = 10.0
DRAIN_S = 60
MAX_CONNECTIONS = 1024


class _Protocol(HttpToolsProtocol):
    """A connection that sends no whole head in time is closed; uvicorn itself waits for ever."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADERS_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def serve(repository: Repository, policy: Policy, *, host: str, port: int, report: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is answered. report takes a sentence for every step.

    Raises ValueError or OSError where a bundle cannot be served or the address is taken.
    """
    config = uvicorn.Config(
        create_app(repository, policy),
        http=_Protocol,
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
        except (ValueError, OSError) as error:
            failures.append(error)
            server.should_exit = True

    Thread(target=load, name="fewstep-loader", daemon=True).start()
    asyncio.run(server.serve(sockets=[listening]))
    if failures:
        raise failures[0]

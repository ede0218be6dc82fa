"""Run the application in uvicorn: load and warm up beside a server that already answers probes, drain on SIGTERM."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import Any, cast

import uvicorn

from fewstep.runtime.server.app import create_app
from fewstep.runtime.server.connection import Connection, Places
from fewstep.runtime.server.limits import connections_here
from fewstep.runtime.server.repository import Repository
from fewstep.runtime.server.service import Policy

__all__ = ["serve"]

DRAIN_S = 60
ENDS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger("fewstep.server")


def serve(
    repository: Repository,
    policy: Policy,
    *,
    host: str,
    port: int,
    names: Collection[str] = (),
    report: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is answered.

    Args:
        repository: of the models, which are loaded here.
        policy: who may do what, and how much.
        host: name or address to listen on.
        port: of every address that the host has.
        names: by which this server is known beside localhost and addresses. Where none is given it may be known by any, unless
            only this machine can reach it.
        report: takes a sentence for every step.

    Raises:
        ValueError: where a bundle cannot be served, the address is taken, or anyone on the network could load models.
        OSError: where a bundle cannot be read.
    """
    with ExitStack() as open_here:
        for kind in ENDS:  # before there is anything that a signal would have to end
            open_here.callback(signal.signal, kind, signal.signal(kind, lambda *_: sys.exit(0)))
        # Before anything is loaded: a taken port is said at once.
        listening = [open_here.enter_context(at) for at in _listen(host, port)]
        server = uvicorn.Server(_config(repository, policy, host, names, listening))
        _log_to(sys.stderr)
        _run(server, listening, repository, report)


def _config(
    repository: Repository, policy: Policy, host: str, names: Collection[str], listening: Sequence[socket.socket]
) -> uvicorn.Config:
    local = all(ip_address(at.getsockname()[0].partition("%")[0]).is_loopback for at in listening)
    if policy.admin and policy.api_key is None and not local:
        raise ValueError(
            f"with --admin, {host} lets the whole network load models; set FEWSTEP_API_KEY, or use --host 127.0.0.1"
        )
    if names or local:
        policy = policy._replace(names=frozenset(name.lower() for name in (*names, host)))
    connections = connections_here(policy.limits.connections)
    limits = policy.limits._replace(connections=connections, requests=min(policy.limits.requests, connections // 2))
    return uvicorn.Config(
        create_app(repository, policy._replace(limits=limits)),
        http=cast(Any, partial(Connection, places=Places(limits))),
        ws="none",
        log_level="error",  # what clients do wrong is theirs to know
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _run(server: uvicorn.Server, listening: list[socket.socket], repository: Repository, report: Callable[[str], None]) -> None:
    failures: list[Exception] = []

    def load() -> None:
        try:
            for name, version in zip(repository.models, repository.load_all(), strict=True):
                for plan, batcher in version.batchers.items():
                    made = batcher.generator
                    report(f"{name}, {plan}: {made.graph} on {made.backend}, first call {version.first_call_ms[plan]:.0f} ms")
            report(f"ready on {' and '.join(map(_address, listening))}")
        except Exception as error:  # a server that will never be ready must not go on
            failures.append(error)
            server.should_exit = True

    for kind in ENDS:  # before uvicorn has its own handlers, and when it raises the signals again after draining
        signal.signal(kind, lambda *_: setattr(server, "should_exit", True))
    loader = Thread(target=load, name="fewstep-loader", daemon=True)
    loader.start()
    server.run(sockets=listening)  # in uvloop where it is installed
    if failures:
        raise failures[0]
    if loader.is_alive() or repository.loading or server.force_exit:
        # Threads are in ONNX Runtime, which aborts where Python ends under them. They write nothing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address that the host has, IPv4 and IPv6. Raises ValueError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"{host!r} is no address of this machine ({error.strerror}); choose another with --host") from None
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        everywhere = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        try:
            sockets.append(socket.create_server(address, family=family, dualstack_ipv6=everywhere))
        except OSError as error:
            refused = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # else a name has more than this machine
                break
    if refused is not None and (not sockets or refused.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)):
        for at in sockets:
            at.close()
        raise ValueError(f"port {port} of {host} cannot be used ({refused.strerror}); choose another with --port")
    return sockets


def _address(at: socket.socket) -> str:
    name, port = at.getsockname()[:2]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _log_to(stream: Any) -> None:
    """Loads, roll-backs and failures, with their times."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.handlers, log.level, log.propagate = [handler], logging.INFO, False

"""Hostile clients and foreign pages: what a connection, a request and all of them together may cost, on real sockets."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from attacks import ATTACKS, watched
from server_process import BUNDLE, serving
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fewstep.runtime.batcher import FullError
from fewstep.runtime.server import serve, service
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.connection import PIECE_BYTES, PIECES, Connection, Places
from fewstep.runtime.server.limits import Budget, ServerLimits
from fewstep.runtime.server.pictures import MAX_PIXELS, MAX_SIDE
from fewstep.runtime.server.repository import Options, Repository

OPTIONS = Options(plans=("sid1",), backend="cpu", max_batch=4, max_request=64, max_waiting=64)
INFER = "/v2/models/digits/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def repository() -> Iterator[Repository]:
    made = Repository([("digits", BUNDLE)], OPTIONS)
    made.load("digits")
    yield made
    made.close()


@contextlib.contextmanager
def listening(repository: Repository, limits: ServerLimits = ServerLimits(), **policy: Any) -> Iterator[int]:  # noqa: B008
    """A server in this process, as `serve` sets it up, on a port of this machine."""
    http: Any = partial(Connection, places=Places(limits))
    app = create_app(repository, Policy(limits=limits, **policy))
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_level="critical", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as at:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)  # what a client does not read waits in the server
        thread = threading.Thread(target=server.run, args=([at],))
        thread.start()
        try:
            yield at.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def everything(client: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while got := client.recv(1 << 16):
            answer += got
    return answer


def talk(port: int, *parts: bytes) -> bytes:
    with connect(port) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.05)
        return everything(client)


def inputs(count: int = 1) -> dict[str, Any]:
    values = {"seeds": ("UINT64", list(range(count))), "labels": ("INT64", [3] * count)}
    return {"inputs": [{"name": n, "datatype": d, "shape": [count], "data": v} for n, (d, v) in values.items()]}


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


# Attacks as they come, from a process of their own

USUAL = ("pipelining", "slow bodies", "idle connections", "nested lists", "bodies that inflate", "many batch sizes")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, int]]:
    with serving("--plan", "sid1", "--max-batch", "32") as (process, address):
        yield process.pid, int(address.rsplit(":", 1)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in ATTACKS])
def test_memory_stays_and_probes_are_answered(name: str, server: tuple[int, int]) -> None:
    found = watched(name, *server, 3.0)
    assert found["attacker"] == 0
    assert found["probes"] > 3
    assert found["most"] - found["before"] < 256 << 20, found  # bodies have 64 MiB together, small ones 32
    assert found["slowest_probe_s"] < 5, found  # seconds where nothing else runs is the benchmark's to say


def test_every_limit_stands_in_the_docs() -> None:
    limits, page = ServerLimits(), (Path(__file__).parent.parent / "docs" / "serving.md").read_text("utf-8")
    section = page.split("### Limits")[1].split("\n## ")[0]
    for shown in (
        f"| {limits.head_bytes >> 10} KiB, {limits.head_lines} lines, {limits.silence_s:g} s |",
        f"| {limits.tensor_bytes >> 20} MiB |",
        f"| {limits.json_bytes >> 20} MiB, {limits.json_values:,} values, {limits.json_lists:,} lists |",
        f"| {limits.body_bytes >> 10} KiB |",
        f"| {limits.body_s:g} s |",
        f"| {PIECE_BYTES} bytes each, once there are {PIECES:,} |",
        f"| {MAX_PIXELS // 10**6} million pixels, {MAX_SIDE:,} on a side |",
        f"| {limits.pace >> 10} KiB a second |",
        f"| {limits.connections:,}, or",
        f"| {limits.requests:,}, or",
        f"| {limits.bodies_bytes >> 20} MiB, but",
        f"| {limits.answers_bytes >> 20} MiB, but",
    ):
        assert shown in section


# A connection


def test_one_request_at_a_time_is_answered_on_a_connection(repository: Repository) -> None:
    with listening(repository) as port:
        one_by_one = talk(port, LIVE, LIVE, LAST)
        assert one_by_one.count(b"200 OK") == 3
        piped = talk(port, LIVE * 50)
        assert (piped.count(b"200 OK"), piped.count(b"connection: close")) == (1, 1)
        broken = talk(port, LIVE + b"no HTTP\r\n\r\n")
        assert (broken.count(b"200 OK"), broken.count(b"HTTP/1.1")) == (1, 1)
        with connect(port) as client:
            client.sendall(post("/generate", "Content-Length: 2", body=b"{}\r\n").replace(b"Connection: close\r\n", b""))
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.sendall(LAST)
            assert b"HTTP/1.1 200" in everything(client)


def test_who_goes_on_sending_behind_a_request_is_let_go(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, gate = repository.model("digits").version().batcher(None), threading.Event()
    make = batcher.generator.make
    monkeypatch.setattr(batcher.generator, "make", lambda inputs: (gate.wait(30), make(inputs))[1])
    with listening(repository) as port, connect(port) as client:
        client.sendall(post("/generate", "Content-Length: 2", body=b"{}"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(1000):
                client.sendall(bytes(1 << 16))
        gate.set()
        assert talk(port, LAST).startswith(b"HTTP/1.1 200")


HEADS = {
    "lines": b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 100 + b"\r\n",
    "bytes": b"GET /v2 HTTP/1.1\r\nHost: localhost\r\na: " + b"b" * 40_000 + b"\r\n\r\n",
    "a path": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no end": b"GET /v2 HTTP/1.1\r\nHost: localhost\r\na: " + b"b" * 40_000,
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_a_limit(name: str, repository: Repository) -> None:
    with listening(repository) as port:
        fits = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + b"a: b\r\n" * 98 + b"\r\n"
        assert talk(port, fits).startswith(b"HTTP/1.1 200")
        answer = talk(port, HEADS[name])
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "a head has at most 100 lines and 32768 bytes"}


def test_a_trailer_is_no_header(repository: Repository) -> None:
    body = json.dumps(inputs()).encode()
    chunked = post(INFER, "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n" % (len(body), body))
    with listening(repository) as port:
        answer = talk(port, chunked + b"Inference-Header-Content-Length: 1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_body_of_very_small_chunks_is_refused(repository: Repository) -> None:
    with listening(repository) as port:
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(inputs()).encode()) + b"0\r\n\r\n"
        assert talk(port, post(INFER, "Transfer-Encoding: chunked", body=body)).startswith(b"HTTP/1.1 200")
        answer = talk(port, post(INFER, "Transfer-Encoding: chunked", body=b"1\r\n \r\n" * 2000))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"have less than 64 bytes each; send larger ones" in answer
        answer = talk(port, post(INFER, "Transfer-Encoding: chunked", body=(b"1;" + b"a" * 2000 + b"\r\n \r\n") * 50))
        assert b"what is sent beside this body is too much" in answer


def test_an_upgrade_is_not_made_and_ends_the_connection(repository: Repository) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13"
    with listening(repository) as port:
        answer = talk(port, LIVE.replace(b"Host", upgrade + b"\r\nHost"), LIVE)
    assert answer.startswith(b"HTTP/1.1 200")
    assert (answer.count(b"HTTP/1.1"), answer.count(b"connection: close")) == (1, 1)


def test_who_expects_to_be_told_to_go_on_is_told_or_refused(repository: Repository) -> None:
    with listening(repository, api_key="key") as port, connect(port) as client:
        refused = talk(port, post("/generate", "Content-Length: 2", "Expect: 100-continue"))
        assert refused.startswith(b"HTTP/1.1 401 ")
        client.sendall(post("/generate", "X-API-Key: key", "Content-Length: 2", "Expect: 100-continue"))
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{}")
        assert everything(client).startswith(b"HTTP/1.1 200")


def test_a_new_connection_takes_the_place_of_the_one_that_waited_longest(repository: Repository) -> None:
    with listening(repository, ServerLimits(connections=8)) as port, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(port)) for _ in range(20)]
        clients[12].sendall(post("/generate", "Content-Length: 100", body=b"{"))  # goes after those without a request
        assert talk(port, LAST).startswith(b"HTTP/1.1 200")
        assert everything(clients[0]) == b""  # hung up
        clients[19].sendall(LAST)
        assert everything(clients[19]).startswith(b"HTTP/1.1 200")
        more = [opened.enter_context(connect(port)) for _ in range(7)]
        clients[12].sendall(b"}" + b" " * 98)
        assert everything(clients[12]).startswith(b"HTTP/1.1 200")
        for client in more[-2:]:
            client.sendall(LAST)
            assert everything(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("pace", "whole"), [(1 << 20, False), (1 << 10, True)])
def test_who_reads_too_slowly_is_let_go_and_who_reads_is_not(pace: int, whole: bool, repository: Repository) -> None:
    body = json.dumps(inputs(64)).encode()
    with listening(repository, ServerLimits(silence_s=0.5, pace=pace)) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(post(INFER, f"Content-Length: {len(body)}", body=body))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while got := client.recv(1 << 11):
                answer += got
                time.sleep(0.02)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"]}]}") == whole


def test_what_leans_on_uvicorn_is_there() -> None:
    """The one place for a new uvicorn to fail in: what the connection overrides, calls and reads."""
    own = {name for name in vars(Connection) if name in vars(HttpToolsProtocol)}
    assert own >= {
        "connection_made",
        "connection_lost",
        "data_received",
        "on_url",
        "on_header",
        "on_headers_complete",
    }
    assert own >= {"on_body", "on_message_complete", "on_response_complete", "pause_writing", "resume_writing"}
    assert "send_400_response" in own
    config = uvicorn.Config(lambda: None, lifespan="off")
    made = HttpToolsProtocol(config=config, server_state=uvicorn.Server(config).server_state, app_state={}, _loop=object())  # type: ignore[arg-type, call-arg]
    for name in ("connections", "tasks", "cycle", "headers", "url", "parser", "loop", "transport"):
        assert hasattr(made, name) or name in ("headers", "url"), name
    for name in ("more_body", "response_complete", "response_started", "keep_alive", "default_headers"):
        assert re.search(rf"self\.{name}\b", Path(sys.modules[RequestResponseCycle.__module__].__file__ or "").read_text()), (
            name
        )


# All together


def test_a_budget_is_shared_and_one_alone_may_be_larger() -> None:
    budget = Budget(100, 10, "bodies")
    with budget.hold() as alone:
        alone.add(1000)
        assert budget.used == 990
        with budget.hold() as small, budget.hold() as large:
            small.add(10)
            with pytest.raises(FullError, match="bodies of other requests fill the 0 MiB that there are; try again"):
                large.add(11)
    assert budget.used == 0


def test_bodies_in_memory_have_a_limit_together(repository: Repository) -> None:
    limits = ServerLimits(tensor_bytes=1 << 20, bodies_bytes=1 << 20)
    body = json.dumps(inputs()).encode()
    with listening(repository, limits) as port, connect(port) as first:
        first.sendall(post(INFER, f"Content-Length: {1 << 20}", body=bytes(900_000)))
        time.sleep(0.3)
        answer = talk(port, post(INFER, "Content-Length: 500000", body=bytes(500_000)))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"bodies of other requests fill the 1 MiB" in answer
        assert talk(port, post(INFER, f"Content-Length: {len(body)}", body=body)).startswith(b"HTTP/1.1 200")
        first.close()
        time.sleep(0.3)
        assert b"not of the Open Inference" in talk(port, post(INFER, "Content-Length: 500000", body=bytes(500_000)))


def answered_by(port: int, request: bytes, words: bytes) -> None:
    """Ask until an answer has these words."""
    end = time.monotonic() + 30
    while words not in (answer := talk(port, request)):
        assert time.monotonic() < end, answer
        time.sleep(0.01)


def test_requests_that_are_being_made_have_a_limit_and_probes_none(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, gate = repository.model("digits").version().batcher(None), threading.Event()
    make = batcher.generator.make
    monkeypatch.setattr(batcher.generator, "make", lambda inputs: (gate.wait(30), make(inputs))[1])
    with listening(repository, ServerLimits(requests=2)) as port, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(port)) for _ in range(2)]
        for client in clients:
            client.sendall(post("/generate", "Content-Length: 2", body=b"{}"))
        models = LAST.replace(b"/v2/health/live", b"/models")
        answered_by(port, models, b"2 requests are being made, which is all there may be")
        assert talk(port, LAST).startswith(b"HTTP/1.1 200")
        gate.set()
        assert all(everything(client).startswith(b"HTTP/1.1 200") for client in clients)
        answered_by(port, models, b"HTTP/1.1 200")  # a request counts until what it was answered is gone


def test_requests_of_clients_that_left_are_dropped(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, gate, made = repository.model("digits").version().batcher(None), threading.Event(), []
    make = batcher.generator.make
    monkeypatch.setattr(
        batcher.generator, "make", lambda inputs: (made.append(len(inputs.seeds)), gate.wait(30), make(inputs))[2]
    )
    body = json.dumps(inputs(20)).encode()
    with listening(repository) as port:
        stays = connect(port)
        stays.sendall(post("/generate", "Content-Length: 2", body=b"{}"))
        leaving = [connect(port) for _ in range(3)]
        while not made:
            time.sleep(0.01)
        for client in leaving:
            client.sendall(post(INFER, f"Content-Length: {len(body)}", body=body))
        while batcher.waiting < 60:
            time.sleep(0.01)
        for client in leaving:
            client.close()
        while batcher.waiting:  # the test's own limit ends this: nothing is made behind the gate
            time.sleep(0.01)
        gate.set()
        assert everything(stays).startswith(b"HTTP/1.1 200")
        metrics = talk(port, LAST.replace(b"/v2/health/live", b"/metrics"))
    assert made == [1]
    assert b'outcome="ClientLeft"' in metrics


# Beside the event loop


def test_what_grows_is_read_and_written_in_threads(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[str, set[str]] = {}

    def watch(name: str) -> None:
        function = getattr(service, name)

        def watched(*arguments: Any) -> Any:
            where.setdefault(name, set()).add(threading.current_thread().name.rsplit("_", 1)[0])
            return function(*arguments)

        monkeypatch.setattr(service, name, watched)

    for name in ("parse", "answer", "written"):
        watch(name)
    many = json.dumps(inputs(64)).encode() + b" " * 40_000
    with listening(repository) as port:
        assert httpx.post(f"http://127.0.0.1:{port}{INFER}", content=many).status_code == 200
        assert httpx.post(f"http://127.0.0.1:{port}/generate", json={}).status_code == 200
    assert where == {"parse": {"fewstep-reader"}, "answer": {"fewstep-writer"}, "written": {"fewstep-writer"}}


LONG = {
    "bytes": (b" " * (4 << 20), "at most 4194304 bytes"),
    "values": (b"1," * (1 << 18), "at most 262144 values"),
    "lists": (b"[]," * (1 << 14), "at most 16384 lists"),
    "lists in lists": (b"[" * (1 << 14) + b"]" * (1 << 14) + b",", "at most 16384 lists"),
    "objects": (b"{}," * (1 << 14), "at most 16384 lists"),
}


@pytest.mark.parametrize("name", LONG)
def test_json_that_would_take_long_to_read_is_refused_unread(name: str, repository: Repository) -> None:
    data, sentence = LONG[name]
    body = json.dumps(inputs()).encode().replace(b"[0]", b"[" + data + b"0]")
    with listening(repository) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}{INFER}", content=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    assert "send tensors in binary, behind it" in answer.json()["error"]


def test_writing_counts_against_the_deadline(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(service, "written", lambda *_: (gate.wait(30) and b"", "image/png"))
    with listening(repository, timeout_s=0.5) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}/generate", json={}, timeout=20)
        gate.set()
    assert answer.status_code == 504
    assert "before the answer was written" in answer.json()["error"]


# Compressed bodies


def coded(coding: str, body: bytes) -> bytes:
    return gzip.compress(body) if coding == "gzip" else zlib.compress(body)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_read_up_to_its_limit(coding: str, repository: Repository) -> None:
    with listening(repository) as port:

        def send(content: bytes) -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{port}{INFER}", content=content, headers={"Content-Encoding": coding})

        body = json.dumps(inputs()).encode()
        assert send(coded(coding, body)).status_code == 200
        assert send(coded(coding, body + b" " * (3 << 20))).status_code == 200
        for content, status, sentence in (
            (coded(coding, bytes((16 << 20) + 1)), 413, "and this one inflates to more"),
            (coded(coding, body)[:-9], 400, f"ends before its {coding} stream does"),
            (coded(coding, body) * 2, 400, f"bytes behind its {coding} stream"),
            (b"not compressed", 400, f"the body is not {coding}"),
        ):
            answer = send(content)
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
            assert sentence in answer.json()["error"]


# Foreign pages


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (200, {"Host": "127.0.0.1:80"}),
        (200, {"Host": "[::1]:80"}),
        (200, {"Host": "LOCALHOST:80", "Origin": "http://localhost:80"}),
        (200, {"Host": "a.localhost"}),
        (200, {"Host": "known.example:1", "Origin": "https://known.example"}),
        (200, {"Host": "127.0.0.1:80", "Origin": "https://known.example"}),
        (421, {"Host": "evil.example:80", "Origin": "http://evil.example:80"}),
        (421, {"Host": "localhost.evil.example"}),
        (421, {"Host": "localhost@evil.example"}),
        (421, {"Host": "evil.example/localhost"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:81"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": ""}),
    ],
)
def test_names_and_pages_that_are_not_this_servers_are_refused(
    status: int, headers: dict[str, str], repository: Repository
) -> None:
    with listening(repository, names=frozenset({"known.example"})) as port:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/generate", json={}, headers={"Content-Type": "application/json"} | headers
        )
        assert answer.status_code == status, answer.text
        probe = httpx.get(f"http://127.0.0.1:{port}/v2/health/live", headers=headers)
    assert probe.status_code == 200
    assert status == 200 or "--allow-host" in answer.json()["error"]


def test_a_page_cannot_load_models_by_a_request_that_needs_no_leave(repository: Repository) -> None:
    foreign = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    with listening(repository, admin=True) as port:
        for path in ("load", "rollback"):
            answer = httpx.post(f"http://127.0.0.1:{port}/v2/repository/models/digits/{path}", headers=foreign)
            assert answer.status_code == 403
        twice = talk(port, post("/generate", "Host: other", "Content-Length: 2", body=b"{}"))
    assert b"a request has one Host" in twice
    assert list(repository.model("digits").versions) == [1]


def test_models_are_loaded_without_a_key_from_this_machine_alone(tmp_path: Path) -> None:
    repository = Repository([("digits", tmp_path)], OPTIONS)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="lets the whole network load models; set FEWSTEP_API_KEY"):
            serve.serve(repository, Policy(admin=True), host=host, port=0, report=print)
    for policy in (Policy(admin=True), Policy(admin=True, api_key="key")):
        host = "0.0.0.0" if policy.api_key else "127.0.0.1"
        with pytest.raises(FileNotFoundError):  # what comes next: there is no bundle
            serve.serve(repository, policy, host=host, port=0, report=print)


# Batch sizes


def test_batches_of_any_size_share_the_buffers_of_the_largest(repository: Repository) -> None:
    generator = repository.model("digits").version().batcher(None).generator
    pool = generator._pool
    with pool.borrow(4) as large:
        noise, images = large.inputs["noise"], large.outputs["images"]
    for size in (3, 1, 4, 2):
        with pool.borrow(size) as binding:
            assert len(binding.inputs["noise"]) == size
            assert np.shares_memory(binding.inputs["noise"], noise)
            assert np.shares_memory(binding.outputs["images"], images)
        np.testing.assert_array_equal(
            generator(labels=[3] * size, seeds=range(size)), generator(labels=[3] * 4, seeds=range(4))[:size]
        )
    with pool.borrow(2) as first, pool.borrow(2) as second:
        assert not np.shares_memory(first.inputs["noise"], second.inputs["noise"])

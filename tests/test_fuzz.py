"""What others send: requests from the server's own OpenAPI file, bytes that are hardly HTTP, forged bundles.

Nothing may fail, hang or tell what is not the sender's business. Random input comes from fixed seeds, and what once broke is
here and in tests/corpus/ by name; fuzz_bundle.py looks for more as long as one likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import httpx
import onnx
import pytest
import schemathesis
import uvicorn
from fuzz_mutations import mutated
from fuzz_targets import TARGETS, home, seeds, watched
from schemathesis.engine import events, from_schema
from small_sampler import IMAGE, LABELS, PATH, TEXT, sampler_bundle

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.artifact.external import check_files, locations
from fewstep.runtime import Generator
from fewstep.runtime.finite import where_it_ended
from fewstep.runtime.server import serve
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.connection import Connection, Places
from fewstep.runtime.server.limits import ServerLimits
from fewstep.runtime.server.repository import Options, Repository, Version

CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").rglob("*") if path.is_file())
OPTIONS = Options(plans=("one",), backend="cpu", threads=1, max_batch=4, max_request=4, max_waiting=16)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    root = tmp_path_factory.mktemp("fuzz")
    bundles = {"labels": sampler_bundle(root / "labels.bundle", LABELS), "text": sampler_bundle(root / "text.bundle", TEXT)}
    bundles["path"] = sampler_bundle(root / "path.bundle", TEXT, PATH)
    made = Repository([(name, bundle.root) for name, bundle in bundles.items()], OPTIONS)
    for name in bundles:
        made.load(name)
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(repository: Repository) -> Any:
    return create_app(repository, Policy(admin=True))


def send_all(app: Any, requests: list[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.request(method, path, **named) for method, path, named in requests]

    return asyncio.run(send())


def send(app: Any, method: str, path: str, **named: Any) -> httpx.Response:
    (answer,) = send_all(app, [(method, path, named)])
    return answer


def error_of(answer: httpx.Response) -> str:
    """The one sentence of an answer that is an error, and nothing but that."""
    (key, error), *_ = answer.json().items()
    assert (key, len(answer.json())) == ("error", 1)
    assert len(error) < 1000
    assert "Traceback" not in error
    return str(error)


# What the API says of itself


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_answers_are_as_the_openapi_file_says(examples: int, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {"max-examples": examples, "deterministic": True, "database": "none"},
            "checks": {
                # Which labels a model has no schema says; and of numbers it cannot say that 1.0 is not 1.
                "positive_data_acceptance": {"enabled": False},
                "negative_data_rejection": {"expected-statuses": [400, 404, 405, 413]},
                "max_response_time": 5.0,
            },
            "phases": {"stateful": {"enabled": examples > 100}},
        }
    )
    failures, answered = [], set()
    schema = schemathesis.openapi.from_asgi("/openapi.json", _with_known_names(app), config=config)
    for event in from_schema(schema).execute():
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            failures.append(str(event.value))
        if isinstance(event, events.ScenarioFinished):
            failed = [check for checks in event.recorder.checks.values() for check in checks if check.failure_info]
            failures += [f"{event.recorder.label}: {check.failure_info.failure}" for check in failed]
            replies = [sent.response for sent in event.recorder.interactions.values() if sent.response is not None]
            answered |= {event.recorder.label for reply in replies if reply.status_code == 200}
    assert not failures, "\n\n".join(failures[:5])
    assert {"POST /generate", "GET /v2/models/{name}", "POST /v2/repository/models/{name}/load"} <= answered


def _with_known_names(app: Any) -> Any:
    """Every other name in a path is a model's. Whoever runs a whole application ends it, and the models: that is left out."""
    names = cycle(("labels", None, "text", None, "path", None))

    async def changed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
        elif name := next(names):
            await app(scope | {"path": re.sub(r"(?<=models/)[^/]+", name, scope["path"])}, receive, send)
        else:
            await app(scope, receive, send)

    return changed


def test_the_openapi_file_knows_bodies_and_errors(app: Any) -> None:
    api = send(app, "GET", "/openapi.json").json()
    for path, operations in api["paths"].items():
        for operation in operations.values():
            assert {"200", "4XX", "5XX"} == set(operation["responses"]), path
    infer = api["paths"]["/v2/models/{name}/infer"]["post"]
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["inputs"]["items"]["required"] == ["name", "datatype", "shape"]
    assert "$ref" not in json.dumps(infer["requestBody"])
    assert [parameter["name"] for parameter in infer["parameters"]] == ["name", "Inference-Header-Content-Length"]
    example = infer["requestBody"]["content"]["application/json"]["example"]
    assert send(app, "POST", "/v2/models/labels/infer", json=example).status_code == 200


# Requests that are nearly right


def infer(inputs: list[dict[str, Any]], behind: bytes = b"", **more: Any) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + behind, {"Inference-Header-Content-Length": str(len(head))} if behind else {}


def given(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


SEEDS = given("seeds", "UINT64", [2], data=[0, 2**64 - 1])
GOOD = {
    "labels": infer([SEEDS, given("labels", "INT64", [2], data=[0, 2])], parameters={"plan": "one", "timeout": 5_000_000}),
    "text": infer(
        [
            given("seeds", "UINT64", [1], parameters={"binary_data_size": 8}),
            given("prompt_embeds", "FP32", [1, 2, 3], parameters={"binary_data_size": 24}),
        ],
        bytes(32),
        outputs=[{"name": "images", "parameters": {"binary_data": True}}],
    ),
}
ASKED = (
    json.dumps({"model": "labels", "labels": [0, 1], "seed": 3, "format": "webp", "scale": 2}).encode(),
    json.dumps({"model": "path", "prompt_embeds": [[[1, 2.5, 0]] * 2], "samples": 3, "format": "json"}).encode(),
)


def test_changed_requests_get_an_answer(app: Any) -> None:
    requests = [("POST", f"/v2/models/{name}/infer", {"content": c, "headers": h}) for name, (c, h) in GOOD.items()]
    requests += [("POST", "/generate", {"content": c, "headers": {"Content-Type": "application/json"}}) for c in ASKED]
    assert [answer.status_code for answer in send_all(app, requests)] == [200] * 4
    changed = []
    for i in range(1500):
        random = Random(i)
        method, path, named = random.choice(requests)
        content = mutated(named["content"], random)
        headers = dict(named["headers"])
        if "Inference-Header-Content-Length" in headers and random.random() < 0.7:  # else it lies by now
            headers["Inference-Header-Content-Length"] = str(len(content) - 32)
        changed.append((method, path, {"content": content, "headers": headers}))
    answers = send_all(app, changed)
    for answer in answers:
        assert answer.status_code in (200, 400, 404, 413), answer.text
        assert answer.status_code == 200 or error_of(answer)
    assert {answer.status_code for answer in answers} == {200, 400, 404}


SIZE = {"parameters": {"binary_data_size": 8.0}}
WRONG: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "sizes that are no whole numbers": (
        "labels",
        "binary_data_size: Input should be a valid integer",
        400,
        dict(zip(("content", "headers"), infer([given(n, "INT64", [1], **SIZE) for n in "ab"], bytes(16)), strict=True)),
    ),
    "a timeout that is true": (
        "labels",
        "timeout: Input should be a valid integer",
        400,
        {"json": {"inputs": [SEEDS], "parameters": {"timeout": True}}},
    ),
    "an output twice": (
        "labels",
        "asked for twice",
        400,
        {"json": {"inputs": [SEEDS], "outputs": [{"name": "images"}] * 16}},
    ),
    "numbers that are none": (
        "text",
        "prompt_embeds has numbers that are not finite",
        400,
        {"content": infer([SEEDS, given("prompt_embeds", "FP32", [2, 2, 3], data=[float("nan")] * 12)])[0]},
    ),
    "numbers that float32 does not have": (
        "text",
        "a number that FP32 cannot hold",
        400,
        {"json": {"inputs": [SEEDS, given("prompt_embeds", "FP32", [2, 2, 3], data=[1e39] * 12)]}},
    ),
    "more digits than Python reads": (
        "labels",
        "is the length of the JSON",
        400,
        {"content": b"{}", "headers": {"Inference-Header-Content-Length": "1" * 5000}},
    ),
    "a version of many digits": ("labels/versions/" + "1" * 5000, "has no version '11111111111111111111' loaded", 404, {}),
    "a version in other digits": ("labels/versions/%D9%A1", "has no version", 404, {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_request_that_is_wrong_is_told_so(name: str, app: Any) -> None:
    model, message, status, named = WRONG[name]
    answer = send(app, "POST", f"/v2/models/{model}/infer", **named)
    assert answer.status_code == status
    assert message in error_of(answer)


def test_large_requests_are_refused_before_they_cost_anything(app: Any) -> None:
    many = json.dumps({str(i): 0 for i in range(10_000)}).encode()  # each would be a complaint of its own
    empty = b'{"inputs":[{"name":"seeds","datatype":"UINT64","shape":[1],"data":[' + b"[]," * 500_000 + b"1]}]}"
    seeds = given("seeds", "UINT64", [2_000_000], parameters={"binary_data_size": 16_000_000})
    content, headers = infer([seeds], bytes(16_000_000))
    begin = time.process_time()
    answers = send_all(
        app,
        [
            ("POST", "/generate", {"content": many}),
            ("POST", "/v2/models/labels/infer", {"content": empty}),
            ("POST", "/v2/models/labels/infer", {"content": content, "headers": headers}),
            ("POST", "/generate", {"headers": {"Content-Length": "1" * 5000}}),
        ],
    )
    assert time.process_time() - begin < 5
    assert [answer.status_code for answer in answers] == [413, 400, 400, 413]
    messages = ["at most 32768 bytes", "has at most 262144 values", "at most 4 samples", "at most 32768 bytes"]
    assert [message in error_of(answer) for message, answer in zip(messages, answers, strict=True)] == [True] * 4


def test_a_picture_too_large_to_make_is_refused_before_its_images_are(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "a.bundle")
    wide = IMAGE.model_copy(update={"width": 16384})
    repository = Repository([("a", bundle.root)], OPTIONS)
    repository.load("a")
    generator = repository.model("a").version().batcher(None).generator
    generator.signature = bundle.manifest.signature.model_copy(update={"output": wide})
    app = create_app(repository, Policy())
    assert "this one would have 32768 x 8" in error_of(send(app, "POST", "/generate", json={"scale": 2}))
    wide.width, wide.channels = 4, 5
    refused = error_of(send(app, "POST", "/generate", json={"format": "png"}))
    assert refused == "samples are uint8 [4, 4, 5], and no pictures; ask for the format json or npy"
    repository.close()


def test_where_a_bundle_lies_is_not_told(repository: Repository, tmp_path: Path) -> None:
    root = sampler_bundle(tmp_path / "a.bundle").root
    own = Repository([("a", root)], OPTIONS)
    app = create_app(own, Policy(admin=True))
    own.load("a")
    for content in (
        b"{",
        b"{}",
        json.dumps(json.loads((root / MANIFEST).read_text()) | {"graphs": {}, "engines": {}}).encode(),
        None,
    ):
        (root / MANIFEST).write_bytes(content) if content else (root / MANIFEST).unlink()
        answer = send(app, "POST", "/v2/repository/models/a/load")
        assert answer.status_code == 400
        assert str(tmp_path) not in error_of(answer)
    own.close()


def test_going_back_and_forth_never_leaves_a_model_without_a_version(tmp_path: Path) -> None:
    repository = Repository([("a", tmp_path)], OPTIONS)
    repository._open = lambda model, number: Version(number, None, {}, {})  # type: ignore[method-assign, arg-type]
    repository.load("a")
    repository.load("a")
    failures: list[Exception] = []

    def work(act: Callable[[], Any]) -> None:
        try:
            for _ in range(20_000):
                act()
        except Exception as error:
            failures.append(error)

    model = repository.model("a")
    acts = (
        lambda: repository.load("a"),
        lambda: repository.roll_back("a"),
        model.version,
        lambda: list(model.versions.items()),
    )
    threads = [Thread(target=work, args=(act,)) for act in acts]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert not failures
    assert len(model.versions) == 2


def test_a_server_whose_models_fail_to_load_ends(tmp_path: Path) -> None:
    repository = Repository([("a", tmp_path)], OPTIONS)
    repository.load_all = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        serve.serve(repository, Policy(), host="127.0.0.1", port=0, report=print)


@pytest.mark.parametrize(
    "path", ["/../guard.py", "/..%2fguard.py", "/%2e%2e/guard.py", "/..%5cguard.py", "//guard.py", "/%00", "/v2/"]
)
def test_nothing_but_the_page_is_handed_out(path: str, app: Any) -> None:
    async def get() -> int:
        sent: list[dict[str, Any]] = []
        scope = {"type": "http", "method": "GET", "path": httpx.URL("http://x" + path).path, "headers": [], "query_string": b""}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def take(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, take)
        return int(sent[0]["status"])

    assert asyncio.run(get()) == 404


def test_other_methods_are_told_which_there_are(app: Any) -> None:
    answers = [send(app, method, path) for method, path in (("GET", "/generate"), ("DELETE", "/v2"), ("TRACE", "/"))]
    assert [a.status_code for a in answers] == [405] * 3
    assert [set(a.headers["allow"].split(", ")) for a in answers] == [{"POST"}, {"GET"}, {"GET", "HEAD"}]


def test_a_websocket_is_closed_and_a_body_cut_short_is_not_acted_on(app: Any) -> None:
    async def talk(scope: dict[str, Any], *messages: dict[str, Any]) -> list[Any]:
        sent: list[Any] = []
        waiting = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(waiting)

        async def take(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, take)
        return sent

    socket_scope = {"type": "websocket", "path": "/v2", "headers": []}
    assert asyncio.run(talk(socket_scope, {"type": "websocket.connect"})) == [{"type": "websocket.close"}]
    http_scope = {"type": "http", "method": "POST", "path": "/generate", "headers": [], "query_string": b""}
    cut = [{"type": "http.request", "body": b'{"labels":[1]}', "more_body": True}, {"type": "http.disconnect"}]
    assert asyncio.run(talk(http_scope, *cut)) == []


# Bytes on a socket


@contextlib.contextmanager
def listening(app: Any, limits: ServerLimits = ServerLimits()) -> Iterator[int]:  # noqa: B008
    """The application behind the server's own protocol, on a port of this machine."""
    http: Any = partial(Connection, places=Places(limits))
    config = uvicorn.Config(app, http=http, ws="none", log_level="critical", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as at:
        thread = Thread(target=server.run, args=([at],))
        thread.start()
        try:
            yield at.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def talk(port: int, *parts: bytes, seconds: float = 3.0, pause: float = 0.05) -> tuple[bytes, bool]:
    """What the server says to these bytes, and whether it hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        answer = b""
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            while got := client.recv(1 << 16):
                answer += got
        except TimeoutError:
            return answer, False
        except OSError:
            return answer, True
        return answer, True


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def test_a_body_does_not_wait_until_its_head_is_acknowledged(app: Any) -> None:
    """In asyncio, for uvloop does so by itself: TCP_NODELAY, without which the second of two packets waits 40 ms."""
    with listening(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        took = sorted(client.get("/v2").elapsed.total_seconds() for _ in range(41))
    assert took[20] < 0.03


SILENT = {
    "nothing": (b"",),
    "half a head": (b"GET / HTTP/1.1\r\nHost:",),
    "an empty line": (b"\r\n",),
    "half a head after a request": (LIVE, b"GET / HTTP/1.1\r\nHost:"),
    "an empty line after a request": (LIVE, b"\r\n"),
    "a body after its answer": (CHUNKED.replace(b"/generate", b"/nothing") + b"0\r\n\r\n", b"\r\n"),
}


@pytest.mark.parametrize("name", SILENT)
def test_who_is_silent_is_let_go(name: str, app: Any) -> None:
    with listening(app, ServerLimits(silence_s=0.4)) as port:
        assert talk(port, *SILENT[name])[1]


def test_who_talks_is_not_let_go(app: Any) -> None:
    with listening(app, ServerLimits(silence_s=0.4)) as port:
        answer, closed = talk(port, *[LIVE] * 8, LIVE.replace(b"Host: x", b"Host: x\r\nConnection: close"), pause=0.15)
        assert (answer.count(b"200 OK"), closed) == (9, True)


def test_who_does_not_read_is_let_go(app: Any) -> None:
    metrics = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening(app, ServerLimits(silence_s=0.3)) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.settimeout(5)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(2000):
                client.sendall(metrics)
                time.sleep(0.005)


FLOODS = {
    "a header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 4096),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 700),
    "a path": (b"GET /", b"a" * 4096),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * 700),
    "an extension of a chunk": (CHUNKED + b"2;", b"a" * 4096),
    "a head while a request is made": (POST + b"Content-Length: 2\r\n\r\n{}GET /", b"a" * 4096),
}


@pytest.mark.parametrize("name", FLOODS)
def test_what_is_no_body_has_a_limit(name: str, app: Any) -> None:
    begin, more = FLOODS[name]
    with listening(app) as port:
        sent, limit = 0, 1 << 20
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(begin)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while sent < limit * 4:
                    client.sendall(more)
                    sent += len(more)
        assert b"200 OK" in talk(port, LIVE.replace(b"Host: x", b"Host: x\r\nConnection: close"))[0]


def test_a_large_body_in_small_chunks_is_taken(app: Any) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    head = CHUNKED.replace(b"/generate", b"/v2/models/labels/infer").replace(b"Host: x", b"Host: x\r\nConnection: close")
    with listening(app) as port:
        answer, _ = talk(port, head, chunk * 4000 + b"0\r\n\r\n", seconds=10)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"not of the Open Inference Protocol" in answer


RAW = {
    "no HTTP": bytes(range(256)),
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a path that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "a length of many digits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "a chunk that is none": CHUNKED + b"zz\r\n",
    "a chunk of many digits": CHUNKED + b"ffffffffffffffffff\r\n",
    "a folded header": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a header with a zero": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
}


def test_what_is_hardly_http_gets_one_sentence(app: Any) -> None:
    with listening(app) as port:
        for name, content in RAW.items():
            answer, closed = talk(port, content, pause=0)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), name
            assert b"content-type: application/json" in head, name
            assert (list(json.loads(body)), closed) == (["error"], True), name


# Forged bundles


@pytest.mark.parametrize("target", TARGETS)
def test_changed_files_get_a_sentence(target: str) -> None:
    run, begin = TARGETS[target], list(seeds(target).values())
    for content in begin:
        run(content)
    for i in range(300):
        random = Random(i)
        content = mutated(random.choice(begin), random)
        with watched(home()), contextlib.suppress(ValueError, FileNotFoundError):
            run(content)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_does_not(path: Path) -> None:
    content = path.read_bytes()
    with watched(home()), contextlib.suppress(ValueError, FileNotFoundError):
        TARGETS[path.parent.name](content)


def at(tree: Any, where: str, value: Any) -> Any:
    """A manifest with another value, or more of them, at a place such as plans.one.sigmas."""
    *path, last = where.split(".")
    inner = tree
    for key in path:
        inner = inner[key]
    inner[last] = inner[last] | value if isinstance(value, dict) else value
    return tree


def forged(bundle: Bundle, where: str, value: Any) -> Path:
    path = bundle.root / MANIFEST
    path.write_text(json.dumps(at(json.loads(path.read_text()), where, value)))
    return bundle.root


FILE = {"sha256": "0" * 64, "bytes": 0}
FORGED: dict[str, tuple[str, Any, str]] = {
    "a name longer than file systems take": ("files", {"a" * 300: FILE}, "not a plain path inside it"),
    "a name with a zero": ("files", {"a\0": FILE}, "not a plain path inside it"),
    "a name that is another's": ("files", {"a//b": FILE}, "not a plain path inside it"),
    "too many files": ("files", {f"{i}": FILE for i in range(10_001)}, "at most 10000 items"),
    "images of 2**31 channels": (
        "signature.output.channels",
        2**31,
        "output.image.channels: Input should be less than or equal to 16384",
    ),
    "more classes than memory": (
        "signature.inputs",
        [{"kind": "label", "classes": 10**30}],
        "inputs.0.label.classes: Input should be less",
    ),
    "a square that is zero": ("components.net.parametrisation.sigma_data", 1e-200, "sigma_data: Input should be greater"),
    "a square that is infinite": ("plans.one.sigmas", [1e200, 0.0], "sigmas are at most 1e\\+09"),
    "a number of 5000 digits": ("signature.output.low", 0.125, "is not JSON"),  # see below
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_manifest_is_refused(name: str, tmp_path: Path) -> None:
    where, value, message = FORGED[name]
    root = forged(sampler_bundle(tmp_path / "a.bundle"), where, value)
    path = root / MANIFEST
    path.write_text(path.read_text().replace("0.125", "1" * 5000))  # which json.dumps does not write
    with pytest.raises(ValueError, match=message):
        Bundle.load(root)


def test_millions_of_mistakes_are_one(tmp_path: Path) -> None:
    root = sampler_bundle(tmp_path / "a.bundle").root
    manifest = json.loads((root / MANIFEST).read_text())
    begin = time.process_time()
    for wrong in (at(manifest, "plans.one.alphas", [""] * 1_000_000), manifest | {str(i): 0 for i in range(200_000)}):
        (root / MANIFEST).write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="is not a valid manifest") as caught:
            Bundle.load(root)
        assert len(str(caught.value)) < 1500
    assert time.process_time() - begin < 10


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    root = sampler_bundle(tmp_path / "a.bundle").root
    (root / MANIFEST).rename(tmp_path / "elsewhere.json")
    (root / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="is a link"):
        Bundle.load(root)


def test_a_network_with_files_that_have_no_hash_is_refused(digits: Bundle) -> None:
    (digits.component("teacher") / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"does not know: components/teacher/model\.safetensors\.index\.json"):
        digits.component("teacher")


@pytest.mark.parametrize(
    ("name", "location"), [("tag_of_33_bits", None), ("default_of_a_function", "secret.bin"), ("training", "secret.bin")]
)
def test_a_file_that_weights_come_from_cannot_be_hidden(name: str, location: str | None) -> None:
    """ONNX Runtime reads the first two from where they say."""
    content = (Path(__file__).parent / "corpus" / "graph" / name).read_bytes()
    if location:
        assert locations(content) == {location}
    else:
        with pytest.raises(ValueError, match="not a readable ONNX file"):
            locations(content)


def test_weights_that_are_not_beside_their_graph_are_refused(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "a.bundle")
    entry = bundle.manifest.graphs["one.fp32"].model_copy(update={"data": ["ranges.json"]})
    with pytest.raises(ValueError, match=r"keeps the weights of 'graphs/one.onnx' in 'ranges.json', not beside it"):
        check_files(bundle, entry)


def test_weights_are_checked_before_a_sample_that_is_not_finite_is_looked_into(tmp_path: Path) -> None:
    """An engine may have run: then nobody has read the graph yet."""

    def elsewhere(graph: onnx.GraphProto) -> None:
        (hundred,) = [tensor for tensor in graph.initializer if tensor.external_data]
        hundred.external_data[0].value = "two.onnx"

    bundle = replaced(sampler_bundle(tmp_path / "a.bundle"), elsewhere)
    told = where_it_ended(bundle, bundle.manifest.graphs["one.fp32"], {})
    assert "reads weights from 'two.onnx', which the bundle has no hash for" in told


def replaced(bundle: Bundle, change: Any) -> Bundle:
    """The bundle with its graph changed, and signed as if that were right."""
    model = onnx.load(bundle.root / "graphs/one.onnx", load_external_data=False)
    change(model.graph)
    with bundle.edit() as draft:
        draft.new("graphs/one.onnx").write_bytes(model.SerializeToString())
    return Bundle.load(bundle.root)


def rename(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "loudness"


def retype(graph: onnx.GraphProto) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.DOUBLE, ["batch"]))


def enlarge(graph: onnx.GraphProto) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 2**40]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"'one.fp32' takes nothing as 'noise', its bundle float32 \[-1, 1, 1, 4, 4\]"),
        (retype, r"the graph has 'more' as tensor\(double\)"),
        (enlarge, r"takes float32 \[-1, 1099511627776\] as 'more', its bundle nothing"),
    ],
)
def test_a_graph_that_is_not_for_its_bundle_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Generator(replaced(sampler_bundle(tmp_path / "a.bundle"), change), backend="cpu")

"""The server: what the protocol's own client asks, what a browser asks, and what nobody should."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.runtime import Generator
from fewstep.runtime.batcher import Batcher
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.limits import ServerLimits
from fewstep.runtime.server.repository import Options, Repository

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"
OPTIONS = Options(plans=("sid1", "sid2"), backend="cpu", max_batch=4, max_request=4, max_waiting=8)


class Client:
    """Requests to an application in this process."""

    def __init__(self, repository: Repository, policy: Policy) -> None:
        self.app = create_app(repository, policy)

    def __call__(self, method: str, path: str, **named: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
                return await client.request(method, path, **named)

        return asyncio.run(send())


@pytest.fixture(scope="module")
def repository() -> Iterator[Repository]:
    made = Repository([("digits", BUNDLE)], OPTIONS)
    made.load("digits")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(repository: Repository) -> Client:
    return Client(repository, Policy(limits=ServerLimits(body_bytes=100_000)))


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.open(BUNDLE, plan="sid1", backend="cpu")


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def infer(seeds: list[int], labels: list[int], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor("seeds", "UINT64", seeds), tensor("labels", "INT64", labels)], **more}


def test_metadata_says_what_the_model_takes_and_gives(client: Client) -> None:
    assert client("GET", "/v2").json()["name"] == "fewstep"
    assert client("GET", "/v2/health/live").status_code == client("GET", "/v2/health/ready").status_code == 200
    found = client("GET", "/v2/models/digits").json()
    said = {"meaning": "a whole number for each sample; the same one makes the same sample", "optional": False}
    assert found["inputs"] == [
        {"name": "seeds", "datatype": "UINT64", "shape": [-1], "parameters": said},
        {
            "name": "labels",
            "datatype": "INT64",
            "shape": [-1],
            "parameters": {"meaning": "0 to 9 for a class", "optional": True},
        },
    ]
    said = {"meaning": "0 to 255", "optional": False}
    assert found["outputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28, 1], "parameters": said}]
    assert client("GET", "/v2/models/digits/versions/1/ready").status_code == 200


def test_infer_gives_the_generators_images(client: Client, generator: Generator) -> None:
    answer = client("POST", "/v2/models/digits/infer", json=infer([0, 2**64 - 1], [3, 1], id="a")).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "a")
    (output,) = answer["outputs"]
    made = np.array(output["data"], np.uint8).reshape(output["shape"])
    np.testing.assert_array_equal(made, generator(labels=[3, 1], seeds=[0, 2**64 - 1]))


def test_the_plan_is_a_parameter(client: Client) -> None:
    answer = client("POST", "/v2/models/digits/infer", json=infer([5], [3], parameters={"plan": "sid2"})).json()
    made = np.array(answer["outputs"][0]["data"], np.uint8).reshape(1, 28, 28, 1)
    np.testing.assert_array_equal(made, Generator.open(BUNDLE, plan="sid2", backend="cpu")(labels=[3], seeds=[5]))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_generate_gives_a_picture(form: str, client: Client, generator: Generator) -> None:
    asked = {"labels": [3, 1, 4], "seed": 7, "format": form.lower()}
    answer = client("POST", "/generate", json=asked)
    assert answer.headers["content-type"] == f"image/{form.lower()}"
    assert float(answer.headers["x-latency-ms"]) > 0
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.format == form
    expected = generator(labels=[3, 1, 4], seeds=[7, 8, 9])[..., 0]
    np.testing.assert_array_equal(np.array(picture.convert("L")), np.concatenate(list(expected), axis=1))


def test_metrics_count_what_happened(client: Client) -> None:
    before = client("GET", "/metrics").text
    client("POST", "/generate", json={"labels": [1, 2]})
    client("POST", "/generate", json={"labels": [11]})
    after = client("GET", "/metrics").text

    def count(text: str, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    samples = 'fewstep_samples_total{model="digits",plan="sid1"}'
    assert count(after, samples) == count(before, samples) + 2
    bad = 'fewstep_requests_total{model="digits",outcome="ValueError",plan="sid1"}'
    assert count(after, bad) == count(before, bad) + 1
    assert 'fewstep_current_version{model="digits"} 1.0' in after


EXTRA = {"inputs": [*infer([0], [0])["inputs"], tensor("x", "FP32", [1.0])]}
BAD: list[tuple[int, str, str, Any]] = [
    (404, "/v2/models/nope/infer", "there is no model 'nope'; there is: digits", infer([0], [0])),
    (404, "/v2/models/digits/versions/9/infer", "no version '9' loaded; there is: 1", infer([0], [0])),
    (404, "/v2/models/digits/infer", "no plan 'x'; there is: sid1, sid2", infer([0], [0], parameters={"plan": "x"})),
    (400, "/v2/models/digits/infer", "not of the Open Inference Protocol: body: Invalid JSON", b"{"),
    (400, "/v2/models/digits/infer", "not of the Open Inference Protocol: inputs", {}),
    (400, "/v2/models/digits/infer", "the input seeds is needed", {"inputs": [tensor("labels", "INT64", [1])]}),
    (400, "/v2/models/digits/infer", "inputs.0.datatype", {"inputs": [tensor("seeds", "BYTES", ["x"])]}),
    (400, "/v2/models/digits/infer", "0 to 9, got 10", infer([0], [10])),
    (400, "/v2/models/digits/infer", "one per seed (1), got int64 of shape (2,)", infer([0], [1, 2])),
    (400, "/v2/models/digits/infer", "needs 1 numbers of UINT64", infer(["a"], [0])),  # type: ignore[list-item]
    (400, "/v2/models/digits/infer", "a number that UINT64 cannot hold", infer([-1], [0])),
    (400, "/v2/models/digits/infer", "at most 4 samples, got 5", infer([0] * 5, [0] * 5)),
    (400, "/v2/models/digits/infer", "there is no output 'x'", infer([0], [0], outputs=[{"name": "x"}])),
    (400, "/v2/models/digits/infer", "parameters.timeout: Input should be", infer([0], [0], parameters={"timeout": -1})),
    (400, "/v2/models/digits/infer", "this bundle takes labels, got x; leave that out", EXTRA),
    (400, "/v2/models/digits/infer", "is there twice", {"inputs": [tensor("seeds", "UINT64", [1])] * 2}),
    (400, "/generate", "body.seed", {"seed": -1}),
    (400, "/generate", "body.more: an input is a list, of a value for each sample or of one for all", {"more": 1}),
    (400, "/generate", "this bundle takes labels, got more; leave that out", {"more": [1]}),
    (400, "/generate", "one per seed (2), got int64 of shape (3,)", {"labels": [1, 2, 3], "samples": 2}),
    (400, "/generate", "body.labels: values are numbers, names of at most 255 characters", {"labels": [True]}),
    (400, "/generate", "names or whole numbers, one per seed (2), got int64 of shape (2, 1)", {"labels": [[1], [2]]}),
    (400, "/generate", "names or whole numbers, one per seed (2), got object", {"labels": [[1], [2, 3]]}),
    (400, "/generate", "scale makes pictures larger, and numbers were asked for", {"format": "npy", "scale": 2}),
    (400, "/generate", "body", b"[" * 50_000),
    (400, "/generate", "0 to 9, got 10", {"labels": [10]}),
    (404, "/generate", "no plan 'x'", {"plan": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "path", "message", "body"), BAD, ids=[message[:30] for _, _, message, _ in BAD])
def test_bad_requests_get_one_sentence(status: int, path: str, message: str, body: Any, client: Client) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client("POST", path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert message in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_deeply_nested_data_is_refused_without_recursion(client: Client) -> None:
    nested = "[" * 5000 + "]" * 5000
    body = f'{{"inputs":[{{"name":"seeds","datatype":"UINT64","shape":[1],"data":{nested}}}]}}'
    answer = client("POST", "/v2/models/digits/infer", content=body.encode())
    assert answer.status_code == 400


@pytest.mark.parametrize("length", ["9999999", "-1", "x", "²"])
def test_a_wrong_header_length_is_refused(length: str, client: Client) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = client("POST", "/v2/models/digits/infer", json=infer([0], [0]), headers=headers)
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length is the length of the JSON" in answer.json()["error"]


def test_binary_tensors_that_do_not_add_up_are_refused(client: Client) -> None:
    def send(size: int, more: bytes) -> httpx.Response:
        seeds = {"name": "seeds", "datatype": "UINT64", "shape": [1], "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [seeds]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return client("POST", "/v2/models/digits/infer", content=head + more, headers=headers)

    assert send(8, bytes(8)).status_code == 200
    assert "has 8 bytes, got binary_data_size 16" in send(16, bytes(16)).json()["error"]
    assert "has 8 bytes, got binary_data_size 8" in send(8, bytes(4)).json()["error"]
    assert "2 bytes that belong to no input" in send(8, bytes(10)).json()["error"]


def test_large_compressed_and_slow_bodies_are_refused(repository: Repository) -> None:
    client = Client(repository, Policy(limits=ServerLimits(body_bytes=1000, body_s=0.2)))
    assert client("POST", "/generate", content=b" " * 1001).status_code == 413

    async def growing() -> Any:  # without Content-Length
        for _ in range(11):
            yield b" " * 100

    assert client("POST", "/generate", content=growing()).status_code == 413
    assert client("POST", "/generate", content=b"x", headers={"Content-Encoding": "br"}).status_code == 415

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    assert client("POST", "/generate", content=slow()).status_code == 408


def test_names_stand_in_urls_and_an_empty_key_is_none(repository: Repository) -> None:
    for name in ("", "a/b", "a b"):
        with pytest.raises(ValueError, match="cannot stand in a URL"):
            Repository([(name, BUNDLE)], OPTIONS)
    with pytest.raises(ValueError, match="FEWSTEP_API_KEY is empty"):
        Client(repository, Policy(api_key=""))
    for key in ("a b", " a", "a\n", "a\tb", "é"):
        with pytest.raises(ValueError, match="FEWSTEP_API_KEY holds white space or other than ASCII"):
            Client(repository, Policy(api_key=key))


def test_probes_answer_head(client: Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"):
        assert client("HEAD", path).status_code == 200


def test_a_second_load_is_answered_409_while_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Repository([("digits", BUNDLE)], OPTIONS._replace(plans=("sid1",)))
    begun, gate, opened = threading.Event(), threading.Event(), own._open
    monkeypatch.setattr(own, "_open", lambda *arguments: (begun.set(), gate.wait(30), opened(*arguments))[2])
    client = Client(own, Policy(admin=True))
    first = threading.Thread(target=own.load, args=("digits",))
    first.start()
    assert begun.wait(30)
    answer = client("POST", "/v2/repository/models/digits/load")
    assert (answer.status_code, list(answer.json())) == (409, ["error"])
    gate.set()
    first.join()
    assert client("POST", "/v2/repository/models/digits/load").json() == {"version": "2"}
    own.close()


def test_json_without_its_content_type_is_told_so(client: Client) -> None:
    answer = client("POST", "/generate", content=b'{"labels": [3]}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]


def test_an_api_key_is_asked_for_but_by_probes_and_the_empty_playground(repository: Repository) -> None:
    client = Client(repository, Policy(api_key="secret"))
    assert client("GET", "/v2/health/ready").status_code == 200
    assert client("GET", "/").status_code == 200
    for path in ("/docs", "/openapi.json", "/models", "/metrics", "/v2/models/digits"):
        assert client("GET", path).status_code == 401
        assert client("GET", path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client("GET", path, headers={"Authorization": "Bearer secret"}).status_code != 401
        assert client("GET", path, headers={"Authorization": "bearer secret"}).status_code != 401
        assert client("GET", path, headers={"X-API-Key": "secret"}).status_code != 401


def test_overload_answers_503_with_retry_after_at_once_and_what_was_accepted_is_made(
    client: Client, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, begun, gate = repository.model("digits").version().batcher("sid1"), threading.Event(), threading.Event()
    make = batcher.generator.make
    monkeypatch.setattr(batcher.generator, "make", lambda inputs: (begun.set(), gate.wait(30), make(inputs))[2])

    async def scene() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://test") as http:
            sent = [asyncio.create_task(http.post("/generate", json={"labels": [0]}))]
            while not begun.is_set():
                await asyncio.sleep(0.01)
            sent += [asyncio.create_task(http.post("/generate", json={"labels": [i % 10]})) for i in range(19)]
            while sum(task.done() for task in sent) < 11:  # one image is being made, 8 wait; the test's own limit ends this
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert [task.result().status_code for task in sent if task.done()] == [503] * 11
            gate.set()
            return await asyncio.gather(*sent)

    answers = asyncio.run(scene())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 503}


def test_a_new_version_is_loaded_beside_the_old_one_and_can_be_taken_back(tmp_path: Path) -> None:
    root = tmp_path / "digits.bundle"
    shutil.copytree(BUNDLE, root)
    repository = Repository([("digits", root)], OPTIONS._replace(plans=("sid1",)))
    client = Client(repository, Policy(admin=True))
    assert client("GET", "/v2/health/ready").status_code == 503
    assert client("POST", "/generate", json={}).status_code == 503
    load, back = "/v2/repository/models/digits/load", "/v2/repository/models/digits/rollback"
    assert client("POST", load).json() == {"version": "1"}
    first = client("POST", "/generate", json={"labels": [3]})
    assert client("POST", back).status_code == 404
    assert client("POST", load).json() == {"version": "2"}
    assert client("POST", "/generate", json={"labels": [3]}).headers["x-model-version"] == "2"
    assert client("POST", back).json() == {"version": "1"}
    again = client("POST", "/generate", json={"labels": [3]})
    assert (again.headers["x-model-version"], again.content) == ("1", first.content)
    (root / "graphs" / "sid1.fp32.onnx").write_bytes(b"not a graph")
    assert client("POST", load).status_code == 400
    assert client("POST", "/generate", json={"labels": [3]}).content == first.content  # nothing has changed
    states = client("POST", "/v2/repository/index").json()
    assert [(state["version"], state["reason"]) for state in states] == [("1", "current"), ("2", "")]
    repository.close()


def test_models_are_not_loaded_over_http_unless_that_was_allowed(client: Client) -> None:
    assert client("POST", "/v2/repository/models/digits/load").status_code == 404


def test_a_server_that_ends_makes_what_it_accepted() -> None:
    own = Repository([("digits", BUNDLE)], OPTIONS._replace(plans=("sid1",)))
    own.load("digits")
    batcher: Batcher = own.model("digits").version().batcher(None)
    future = batcher.submit(labels=[1], seeds=[1])
    own.close()
    assert future.result(0).shape == (1, 28, 28, 1)

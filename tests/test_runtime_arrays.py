"""Where a bundle's inputs and output are arrays: the generator, its batches, the server, its page and the command."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, browser
from fastapi.testclient import TestClient
from server_process import serving
from small_sampler import IMAGE, PATH, sampler_bundle
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.described import described_inputs
from fewstep.artifact.signature import ArrayInput, LabelInput
from fewstep.runtime import Generator
from fewstep.runtime.batcher import Batcher
from fewstep.runtime.bench import measure
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.noise import noise
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.repository import Options, Repository

SEEN = ArrayInput(name="seen", shape=(2, 3), null="zeros")
TOLD = ArrayInput(name="told", shape=(4,), null="given")
TASK = LabelInput(name="task", classes=2, names=("push", "pull"), null=False)
GIVEN = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 7


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """From what a robot sees to where it is to be, in units: mean + std (noise + mean of what is seen)."""
    return sampler_bundle(tmp_path_factory.mktemp("robot") / "robot.bundle", [SEEN, TASK], PATH)


@pytest.fixture(scope="module")
def generator(robot: Bundle) -> Generator:
    return Generator(robot, backend="cpu")


@pytest.fixture(scope="module")
def client(robot: Bundle) -> Iterator[TestClient]:
    repository = Repository([("robot", robot.root)], Options(backend="cpu", max_batch=4, max_request=8))
    repository.load("robot")
    with TestClient(create_app(repository, Policy())) as made:
        yield made


def expected(seen: np.ndarray, seeds: list[int]) -> np.ndarray:
    """By numpy alone, (B, 6, 2)."""
    sample = noise(seeds, (2, 6)) + seen.mean(axis=(1, 2)).reshape(-1, 1, 1)
    return np.moveaxis(sample, 1, -1) * [2, 1] + [10, 0]


def test_values_are_in_units_whatever_the_batch(generator: Generator) -> None:
    made = generator(seen=GIVEN, task=["push", 1], seeds=[3, 4])
    assert (made.dtype, made.shape) == (np.float32, (2, 6, 2))
    np.testing.assert_allclose(made, expected(GIVEN, [3, 4]), rtol=1e-5)
    np.testing.assert_array_equal(generator(seen=GIVEN[1:], task=[1], seeds=[4]), made[1:])
    np.testing.assert_allclose(generator(task=[0], seeds=[3]), expected(GIVEN[:1] * 0, [3]), rtol=1e-5)
    out = np.empty((2, 6, 2), np.float32)
    generator.generate_into(out, seen=GIVEN.tolist(), task=[0, 1], seeds=[3, 4])
    np.testing.assert_array_equal(out, made)
    with pytest.raises(ValueError, match=r"out is a writable float32 array of shape \(2, 6, 2\), got uint8"):
        generator.generate_into(np.empty((2, 6, 2), np.uint8), seen=GIVEN, task=[0, 1], seeds=[3, 4])


def test_a_step_graph_shows_values_on_the_way(robot: Bundle) -> None:
    seen: list[Any] = []
    stepped = Generator(robot, plan="two", backend="cpu")
    made = stepped(seen=GIVEN, task=[0, 1], seeds=[3, 4], on_step=lambda preview: seen.append(preview.output()))
    assert (seen[0].dtype, seen[0].shape) == (np.float32, (2, 6, 2))
    np.testing.assert_array_equal(seen[-1], made)


def test_batches_and_measurements_are_of_any_signature(generator: Generator) -> None:
    with Batcher(generator) as batcher:
        futures = [batcher.submit(seen=GIVEN[i : i + 1], task=[i], seeds=[i]) for i in range(2)]
        both = np.concatenate([future.result(30) for future in futures])
    np.testing.assert_array_equal(both, generator(seen=GIVEN, task=[0, 1], seeds=[0, 1]))
    assert measure(Generator(generator.bundle, backend="cpu", buckets=(1,)), seconds=0.01)[0]["p50_ms"] > 0


def test_values_that_are_too_large_for_their_units_are_not_handed_out(tmp_path: Path) -> None:
    wide = PATH.columns[0].model_copy(update={"std": 1e38})
    bundle = sampler_bundle(tmp_path / "b", [SEEN], PATH.model_copy(update={"columns": (wide, PATH.columns[1])}))
    with pytest.raises(NotFiniteError, match="not finite"):
        Generator(bundle, backend="cpu")(seen=np.full((1, 2, 3), 30), seeds=[0])
    large = Generator(bundle, backend="cpu")(seeds=[0])  # whose sum is more than float32 holds
    assert np.isfinite(large).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seen": GIVEN}, "knows no image without a class; give task, 0 to 1"),
        ({"seen": GIVEN[:1], "task": [0, 1]}, r"seen has shape \(2, 2, 3\) for 2 seeds, got \(1, 2, 3\)"),
        ({"seen": GIVEN * np.nan, "task": [0, 1]}, "seen has numbers that are not finite"),
        ({"task": [0, 1], "self": [1, 2]}, "takes seen, task, got self; leave that out"),
        ({"task": [0, 1], "seen": [[[10**400] * 3] * 2] * 2}, "seen holds numbers only"),
    ],
)
def test_bad_input_is_refused_in_words(given: dict[str, Any], words: str, generator: Generator) -> None:
    with pytest.raises(ValueError, match=words):
        generator.prepare(seeds=[0, 1], **given)


# The server


def tensor(name: str, values: np.ndarray, datatype: str) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}


def inputs(seeds: list[int]) -> list[dict[str, Any]]:
    task = tensor("task", np.zeros(len(seeds), np.int64), "INT64")
    return [tensor("seeds", np.array(seeds), "UINT64"), tensor("seen", GIVEN[: len(seeds)], "FP32"), task]


def test_metadata_describe_every_input_and_the_output(client: TestClient) -> None:
    found = client.get("/v2/models/robot").json()
    assert [(i["name"], i["datatype"], i["shape"]) for i in found["inputs"]] == [
        ("seeds", "UINT64", [-1]),
        ("seen", "FP32", [-1, 2, 3]),
        ("task", "INT64", [-1]),
    ]
    said = {i["name"]: i["parameters"] for i in found["inputs"]}
    assert said["seen"] == {"meaning": "seen, finite, zeros for none", "optional": True}
    assert said["task"] == {"meaning": "0 to 1 for a class", "optional": False, "names": ["push", "pull"]}
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("values", "FP32", [-1, 6, 2])
    assert output["parameters"]["meaning"] == "in units: x (mm), y (mm)"


def test_what_means_none_is_an_input_of_guided_plans_alone(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "b", [TOLD], PATH)
    assert [d.name for d in described_inputs(bundle.manifest.signature, guided=False)] == ["seeds", "told"]
    _, told, negative = described_inputs(bundle.manifest.signature, guided=True)
    assert (negative.name, negative.shape, negative.optional) == ("negative_told", told.shape, False)
    assert negative.meaning == "what means none in place of told"


@pytest.mark.parametrize("binary", [True, False])
def test_infer_gives_the_generators_values_to_the_bit(binary: bool, client: TestClient, generator: Generator) -> None:
    asked = {"inputs": inputs([3, 4]), "parameters": {"binary_data_output": binary}}
    answer = client.post("/v2/models/robot/infer", json=asked)
    end = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    (output,) = json.loads(answer.content[:end])["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("values", "FP32", [2, 6, 2])
    numbers = np.frombuffer(answer.content, "<f4", offset=end) if binary else np.array(output["data"], np.float32)
    np.testing.assert_array_equal(numbers.reshape(2, 6, 2), generator(seen=GIVEN, task=[0, 0], seeds=[3, 4]))


def test_generate_gives_numbers_in_lists_or_a_file_of_numpy(client: TestClient, generator: Generator) -> None:
    made = generator(seen=GIVEN, task=["pull", "pull"], seeds=[3, 4])
    asked = {"seen": GIVEN.tolist(), "task": ["pull"], "seed": 3}
    lists, file = (client.post("/generate", json=asked | more) for more in ({}, {"format": "npy"}))
    assert lists.headers["content-type"] == "application/json"
    assert list(lists.json()) == ["values"]
    np.testing.assert_array_equal(np.array(lists.json()["values"], np.float32), made)
    assert file.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(file.content), allow_pickle=False), made)
    assert float(file.headers["x-latency-ms"]) > 0


def test_a_list_of_one_is_for_all_samples(client: TestClient, generator: Generator) -> None:
    asked = {"seen": GIVEN[:1].tolist(), "task": [1], "samples": 3, "format": "npy"}
    made = np.load(io.BytesIO(client.post("/generate", json=asked).content))
    np.testing.assert_array_equal(made, generator(seen=GIVEN[[0] * 3], task=[1] * 3, seeds=range(3)))


def test_images_come_as_numbers_too(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "b.bundle", [TASK], IMAGE)
    repository = Repository([("b", bundle.root)], Options(backend="cpu", max_batch=4))
    repository.load("b")
    with TestClient(create_app(repository, Policy())) as client:
        answers = {form: client.post("/generate", json={"task": [0, 1], "format": form}) for form in ("npy", "json", "png")}
    made = Generator(bundle, backend="cpu")(task=[0, 1], seeds=[0, 1])
    np.testing.assert_array_equal(np.load(io.BytesIO(answers["npy"].content)), made)
    assert answers["json"].json() == {"images": made.tolist()}
    assert answers["png"].content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"task": [0], "format": "png"}, "samples are float32 [6, 2], and no pictures; ask for the format json or npy"),
        ({"task": [0], "scale": 2}, "scale makes pictures larger, and numbers were asked for; leave it out"),
        ({"task": [0], "seen": [["a"]]}, "body.seen: values are numbers, names of at most 255 characters, or lists of numbers"),
        ({"task": [0], "seen": [[[1, 2, 3], [1, 2]]]}, "seen holds numbers only"),
        ({"task": [0], "seen": [[[1, 2, float("nan")]] * 2]}, "seen has numbers that are not finite"),
        ({"seen": [[[1, 2, 3]] * 2]}, "give task, 0 to 1"),
        ({"task": [0], "prompt": ["a fox"]}, "takes seen, task, got prompt; leave that out"),
        ({"task": [0] * 9}, "at most 8 samples, got 9"),
        ({"task": [0], "seeds": [5]}, "every sample has the seed after that of the one before"),
        ({"task": [0], "self": [5]}, "takes seen, task, got self; leave that out"),
    ],
)
def test_requests_for_what_there_is_not_get_one_sentence(asked: dict[str, Any], words: str, client: TestClient) -> None:
    answer = client.post("/generate", content=json.dumps(asked), headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert words in answer.json()["error"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (PATH or FEWSTEP_CHROMIUM)")
def test_the_playground_asks_for_arrays_and_shows_a_table(robot: Bundle) -> None:
    with serving(bundle=robot.root) as (_, address), browser() as page:
        page.open(f"{address}/")
        page.wait("document.querySelector('#status').textContent === '16 samples from seed 0'")
        assert page.run("[...document.querySelectorAll('#inputs label')].map((l) => l.textContent.split(' ')[0])") == [
            "seen",
            "task",
        ]
        options = page.run("[...document.querySelectorAll('#input-task option')].map((o) => o.text)")
        assert options == ["each in turn", "push", "pull"]
        assert page.run("document.getElementById('input-seen').placeholder") == "2x3 numbers as JSON, or nothing for none"
        page.run(f"document.getElementById('input-seen').value = '{json.dumps(GIVEN[0].tolist())}'")
        page.run("document.getElementById('samples').value = '2'; document.getElementById('seed').value = '3'")
        page.run("document.getElementById('form').requestSubmit()")
        page.wait("document.querySelector('#status').textContent === '2 samples from seed 3'")
        heads, *rows = page.run(
            "[...document.querySelectorAll('#results tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        assert heads == ["sample", "time (s)", "x (mm)", "y (mm)"]
        assert [row[:2] for row in rows] == [[str(i), str(t)] for i in range(2) for t in range(6)]
        shown = np.array([row[2:] for row in rows], np.float32).reshape(2, 6, 2)
        np.testing.assert_allclose(shown, expected(GIVEN[[0, 0]], [3, 4]), rtol=1e-4)
        page.run("document.getElementById('input-seen').value = 'a fox'; document.getElementById('form').requestSubmit()")
        page.wait("document.querySelector('#status').textContent.startsWith('seen is numbers as JSON has them')")
        assert page.complaints == []


def test_the_table_of_contents_says_what_each_plan_takes(client: TestClient) -> None:
    (model,) = client.get("/models").json()
    assert [plan["takes"] for plan in model["plans"]] == [["seen", "task"]] * 2
    assert model["output"]["about"] == "6 time (s), columns x (mm), y (mm)"
    assert httpx.URL("/generate").path in client.get("/openapi.json").json()["paths"]


# The command


def test_generate_writes_all_samples_as_one_file(robot: Bundle, generator: Generator, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", seen=GIVEN)
    written = pytest.importorskip("safetensors.numpy")  # the oldest packages are tested without it
    written.save_file({"seen": GIVEN, "task": np.array([1, 1])}, tmp_path / "given.safetensors")
    asked = ("generate", robot.root, "--inputs", tmp_path / "given.npz", "--labels", "pull", "--seed", 3, "--json")
    done = fewstep(*asked, cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (result["labels"], result["classes"], result["seeds"]) == ([1, 1], ["pull", "pull"], [3, 4])
    assert "wrote values.npy: float32 (2, 6, 2), in units: x (mm), y (mm): pull, pull" in done.stderr
    made = np.load(tmp_path / "values.npy", allow_pickle=False)
    np.testing.assert_array_equal(made, generator(seen=GIVEN, task=[1, 1], seeds=[3, 4]))
    fewstep("generate", robot.root, "--inputs", tmp_path / "given.safetensors", "--seed", 3, "--out", "b.npy", cwd=tmp_path)
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "values.npy").read_bytes()
    fewstep("generate", robot.root, "--inputs", tmp_path / "given.npz", "--samples", 5, "--out", "c.npy", cwd=tmp_path)
    turns = generator(seen=GIVEN[[0, 1, 0, 1, 0]], task=[0, 1, 0, 1, 0], seeds=range(5))
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), turns)


def test_what_means_none_stays_in_the_file_where_nothing_is_guided(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "b.bundle", [TOLD], PATH)
    told, none = np.ones((3, 4), np.float32), np.zeros((1, 4), np.float32)
    np.savez(tmp_path / "given.npz", told=told, negative_told=none)
    asked = ("generate", bundle.root, "--inputs", tmp_path / "given.npz", "--out")
    done = fewstep(*asked, tmp_path / "a.npy")
    assert "negative_told is left out: the plan is not guided" in done.stderr
    made = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(made, Generator(bundle, backend="cpu")(told=told, seeds=range(3)))


def test_images_are_written_as_numbers_too(tmp_path: Path) -> None:
    bundle = sampler_bundle(tmp_path / "b.bundle", [TASK], IMAGE)
    fewstep("generate", bundle.root, "--out", tmp_path / "a.npy")
    made = Generator(bundle, backend="cpu")(task=["push", "pull"], seeds=[0, 1])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), made)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "a.png"], r"float32 (6, 2), no pictures; let the file end with .npy"),
        (["--out", "a.npz"], "this writes PNG or NPY, so the file ends with .png or .npy; got 'a.npz'"),
        (["--scale", "2"], "--scale makes pictures larger, and an .npy holds numbers; leave it out"),
        (["--inputs", "none.npz"], "none.npz is not there"),
        (["--inputs", "task.npz", "--labels", "push"], "--labels and task.npz both say which task; leave one out"),
        (["--inputs", "other.npz"], "other.npz has seeds, and this bundle takes seen, task; leave that out"),
        (["--inputs", "empty.npz"], "seen in empty.npz has no rows; every sample is made from one"),
        (["--inputs", "wide.npz"], "seen has shape (2, 2, 3) for 2 seeds, got (2, 3, 3)"),
        (["--labels", "twist"], "a label of this bundle is push, pull or 0 to 1, got 'twist'"),
    ],
)
def test_bad_commands_get_one_sentence(arguments: list[str], sentence: str, robot: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "task.npz", task=np.array([0, 1]))
    np.savez(tmp_path / "other.npz", seeds=GIVEN)
    np.savez(tmp_path / "empty.npz", seen=GIVEN[:0])
    np.savez(tmp_path / "wide.npz", seen=np.zeros((1, 3, 3), np.float32))
    assert sentence in refused("generate", robot.root, *arguments, cwd=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".npy", ".png")]


def test_inspect_says_what_goes_in_and_comes_out(robot: Bundle) -> None:
    shown = fewstep("inspect", robot.root).stdout
    assert re.search(r"robot: values, 6 time \(s\), columns x \(mm\), y \(mm\); made from seen 2x3; 2 classes", shown)

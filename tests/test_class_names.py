"""Names of classes, from the folders that hold the images to every place where somebody reads or gives a class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest
import torch
from browser import CHROMIUM, browser, served
from diffusers import AutoencoderKL, DDIMScheduler
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import ValidationError
from small import small
from test_cli import fewstep, refused
from test_exporter_edge_web import DONE, ORT_WEB
from test_runtime_serve import serving

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.classes import MAX_CLASS_NAME, Classes, class_names_of
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import Input, LabelInput
from fewstep.data import Images, images_like, numbered_like
from fewstep.data.latents import encode_images
from fewstep.data.samples import classes
from fewstep.evaluation.compare import CompareConfig, compare
from fewstep.evaluation.report import write_report
from fewstep.exporter.edge.package import package
from fewstep.runtime import Generator
from fewstep.runtime.server.app import Policy, create_app
from fewstep.runtime.server.repository import Options, Repository
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim
from fewstep.trainer.batches import open_examples
from fewstep.trainer.configs import SidConfig
from fewstep.trainer.sid import distill

CLOTHES = ("Trouser", "ankle boot", "bag", "bag, small", "t-shirt")  # as they sort


def photographs(root: Path, names: Sequence[str], *, each: int = 6) -> Path:
    """A folder of photographs, each class with a grey of its own, so that a label can be told from the pixels."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(each):
            Image.new("L", (8, 8), 40 * i + k).save(root / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the command trained on a folder of named classes, exported."""
    root = tmp_path_factory.mktemp("clothes")
    photographs(root / "photographs", CLOTHES)
    fewstep("train", "--data", "photographs", "--iterations", 1, "--batch", 2, "--out", "clothes.bundle", cwd=root)
    bundle = Bundle.load(root / "clothes.bundle")
    with bundle.edit() as draft:
        plan = ddim(karras(1, 0.5, 20.0))
        draft.manifest.plans["one"] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM, 1 step")
        draft.manifest.default = "one"
    fewstep("export", "clothes.bundle", "--precision", "fp32", cwd=root)
    return root / "clothes.bundle"


def called(*names: str) -> tuple[Input, ...]:
    """The inputs of a bundle whose classes are called so."""
    return (LabelInput(classes=len(names), names=names),)


def classes_called(*names: str) -> Classes:
    return Classes(len(names), names)


def test_a_class_is_given_by_name_or_number() -> None:
    classes = classes_called("bag", "coat", "bag, small", "tench, Tinca tinca, fish")
    assert [classes.number(given) for given in ("coat", 1, "1", np.int64(3))] == [1, 1, 1, 3]
    assert classes.read("coat,2, bag ,bag, small,tench, Tinca tinca, fish,0") == [1, 2, 0, 2, 3, 0]
    assert classes.read("bag") == [0]
    assert classes.called(2) == "bag, small"
    numbers = Classes(10)
    assert numbers.read("3,1, 4") == [3, 1, 4]
    assert numbers.called(3) == "3"


def test_names_that_read_as_numbers_of_other_classes_are_names_only() -> None:
    digits = classes_called("0", "1", "2")
    assert digits.read("2,0") == [2, 0]
    sorted_folders = classes_called("1", "10", "2")
    assert sorted_folders.read("2,1,10") == [2, 0, 1]
    assert sorted_folders.number(2) == 2
    with pytest.raises(ValueError, match=r"a label of this bundle is 1, 10, 2 by name, got '0'$"):
        sorted_folders.read("0")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("shirt", "a label of this bundle is T-shirt, coat or 0 to 1, got 'shirt'; did you mean 'T-shirt'?"),
        ("t-SHIRT", "a label of this bundle is T-shirt, coat or 0 to 1, got 't-SHIRT'; did you mean 'T-shirt'?"),
        ("zebra", "a label of this bundle is T-shirt, coat or 0 to 1, got 'zebra'"),
        ("", "a label of this bundle is T-shirt, coat or 0 to 1, got ''"),
        ("2", "a label of this bundle is T-shirt, coat or 0 to 1, got 2"),
        (-1, "a label of this bundle is T-shirt, coat or 0 to 1, got -1"),
        ("9" * 5000, f"a label of this bundle is T-shirt, coat or 0 to 1, got '{'9' * 60}'"),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_what_is(given: int | str, sentence: str) -> None:
    with pytest.raises(ValueError, match="a label of this bundle is") as refusal:
        classes_called("T-shirt", "coat").number(given)
    assert str(refusal.value) == sentence


def test_a_refusal_stays_short_whatever_there_is() -> None:
    many = classes_called(*(f"{i} {'x' * 200}" for i in range(2000)))
    with pytest.raises(ValueError, match=r"\(2000 in all\) or 0 to 1999") as refusal:
        many.number("y" * 255)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "each of the 2 classes has a name, or none has, got 1 names"),
        (["a", "a"], "two classes are called 'a'"),
        (["a", ""], "the name of a class is 1 to 255 printable characters, got ''"),
        (["a", " "], "printable characters, got ' '"),
        (["a", "\x1b[31m"], r"printable characters, got '\\x1b"),
        (["a", "b" * (MAX_CLASS_NAME + 1)], "1 to 255 printable"),
        (["a", "\u202eb"], "printable characters"),
    ],
)
def test_names_are_for_all_classes_and_for_eyes(names: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelInput.model_validate({"classes": 2, "names": names})


def test_a_folder_that_no_terminal_can_show_is_named_before_training(tmp_path: Path) -> None:
    photographs(tmp_path / "data", ["bag", "co\nat"])
    assert "a folder co\\nat, whose name cannot be printed" in refused("train", "--data", "data", cwd=tmp_path)


def test_a_class_without_an_image_keeps_its_number() -> None:
    """A data set may name more classes than it has images of."""
    assert classes("set", np.arange(8) % 2, ["a", "b", "c"]) == called("a", "b", "c")


def test_from_the_folder_to_inspect_and_the_card(clothes: Path) -> None:
    shown = fewstep("inspect", clothes)
    line = f"5 classes ({', '.join(f'{i} {name}' for i, name in enumerate(CLOTHES))})"
    assert f"made from {line}" in shown.stdout + shown.stderr
    (told,) = json.loads(fewstep("inspect", clothes, "--json").stdout)["signature"]["inputs"]
    assert told["names"] == list(CLOTHES)
    assert line in (clothes / "card.md").read_text("utf-8")


def test_images_are_asked_for_by_name(clothes: Path, tmp_path: Path) -> None:
    by_name = fewstep("generate", clothes, "--labels", "t-shirt,bag, small,bag", "--out", tmp_path / "a.png", "--json")
    fewstep("generate", clothes, "--labels", "4,3,2", "--out", tmp_path / "b.png")
    result = json.loads(by_name.stdout)
    assert (result["labels"], result["classes"]) == ([4, 3, 2], ["t-shirt", "bag, small", "bag"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "t-shirt, bag, small, bag" in by_name.stderr
    known = "a label of this bundle is Trouser, ankle boot, bag, bag, small, t-shirt or 0 to 4"
    assert refused("generate", clothes, "--labels", "shirt") == f"fewstep: {known}, got 'shirt'; did you mean 't-shirt'?"
    generator = Generator.open(clothes, backend="cpu")
    made = [
        generator(labels=labels, seeds=[0, 1])
        for labels in (["bag", 4], np.array(["bag", "t-shirt"]), np.array([2, 4]), [2, 4])
    ]
    assert all((images == made[0]).all() for images in made)
    assert (made[0][0] != generator(labels=["Trouser"], seeds=[0])[0]).any()
    with pytest.raises(ValueError, match=r"or 0 to 4, got 1\.5$"):
        generator(labels=["bag", 1.5], seeds=[0, 1])
    for wrong in ("bag", [["bag"], ["bag"]], [2.0, 4.0], ["bag"]):
        with pytest.raises(ValueError, match="labels are names or whole numbers, one per seed"):
            generator(labels=wrong, seeds=[0, 1])


def test_the_server_knows_and_takes_names(clothes: Path) -> None:
    repository = Repository([("clothes", clothes)], Options(backend="cpu", max_batch=2))
    repository.load("clothes")
    with TestClient(create_app(repository, Policy())) as client:
        (model,) = client.get("/models").json()
        (given,) = model["inputs"]
        assert (given["name"], given["choices"], given["names"]) == ("labels", 5, list(CLOTHES))
        inputs = {given["name"]: given for given in client.get("/v2/models/clothes").json()["inputs"]}
        assert inputs["labels"]["parameters"]["names"] == list(CLOTHES)
        assert "names" not in inputs["seeds"]["parameters"]
        pictures = [client.post("/generate", json={"labels": labels}) for labels in (["bag", 4], [2, "t-shirt"], [2, 4])]
        assert [picture.status_code for picture in pictures] == [200] * 3
        assert len({picture.content for picture in pictures}) == 1
        wrong = client.post("/generate", json={"labels": ["shirt"]})
        assert wrong.status_code == 400
        assert wrong.json()["error"].endswith("or 0 to 4, got 'shirt'; did you mean 't-shirt'?")
        assert client.post("/generate", json={"labels": ["x" * 256]}).status_code == 400


def test_what_ships_carries_the_names(clothes: Path, tmp_path: Path) -> None:
    package(Bundle.load(clothes), tmp_path / "package", ["web", "device"])
    facts = json.loads((tmp_path / "package" / "web" / "facts.json").read_text("utf-8"))
    assert facts["inputs"][0]["names"] == list(CLOTHES)
    graph = ort.InferenceSession(tmp_path / "package" / "web" / "one.fp32.onnx")
    assert graph.get_modelmeta().custom_metadata_map["fewstep.input.labels.names"].split("\n") == list(CLOTHES)
    device = tmp_path / "package" / "device" / "clothes.bundle"
    assert Bundle.load(device).manifest.signature.inputs == called(*CLOTHES)
    triton = pytest.importorskip("fewstep.runtime.deploy.triton", reason="needs tritonclient")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    triton.write_repository(Bundle.load(clothes), tmp_path / "models", ["one"], triton.TritonSettings("cpu"))
    config = text_format.Parse((tmp_path / "models/clothes.one/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert json.loads(config.parameters["labels"].string_value)["names"] == list(CLOTHES)


def test_what_is_made_of_a_bundle_keeps_the_names_and_real_images_are_told_by_them(clothes: Path, tmp_path: Path) -> None:
    """Folders under other capitals sort otherwise: bag comes first, and is not Trouser."""
    copy = Bundle.load(shutil.copytree(clothes, tmp_path / "clothes.bundle"))
    bundle = distill(copy, "free", SidConfig(iterations=1, batch=2))
    with pytest.raises(ValueError, match=r"others is not of the classes of .*: there are Trouser, .* trouser besides"):
        others = photographs(tmp_path / "others", [name.lower() for name in CLOTHES])
        distill(bundle, "seen", SidConfig(iterations=1, batch=2), samples=open_examples(str(others)))
    seen = open_examples(str(clothes.parent / "photographs"))
    bundle = distill(bundle, "seen", SidConfig(iterations=1, batch=2), samples=seen)
    assert bundle.manifest.signature.inputs == called(*CLOTHES)
    assert "(0 Trouser, 1 ankle boot" in bundle.file("card.md").read_text("utf-8")


def test_labels_of_other_sources_are_matched_by_name(clothes: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(clothes)
    some = images_like(bundle, str(photographs(tmp_path / "some", ["t-shirt", "bag"])))
    greys = some[np.arange(len(some))][0].mean(axis=(1, 2, 3))
    assert set(some.labels[greys < 20]) == {4}
    assert set(some.labels[greys > 30]) == {2}  # bag sorts first in its folder, and third in the bundle
    assert some.signature.inputs == bundle.manifest.signature.inputs
    numbered = Images.of(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10) % 5)
    with pytest.raises(ValueError, match="it has numbers alone, which may mean others; call its classes"):
        numbered_like(bundle, numbered)
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "some" / "bag", flat)
    with pytest.raises(ValueError, match="flat has samples without classes; give it one subfolder per class"):
        images_like(bundle, str(flat))


def test_a_bundle_that_knows_numbers_alone_takes_folders_named_by_numbers_as_those(digits: Bundle, tmp_path: Path) -> None:
    """Twelve folders sort as 0, 1, 10, 11, 2, ...; ten as numbers do."""
    words = images_like(digits, str(photographs(tmp_path / "words", ["a", "b"])))
    assert set(words.labels) == {0, 1}
    some = images_like(digits, str(photographs(tmp_path / "some", ["3", "7"])))
    assert set(some.labels) == {3, 7}
    with pytest.raises(ValueError, match="there are 10, and it has more of them"):
        images_like(digits, str(photographs(tmp_path / "more", ["3", "10"])))


def test_pipelines_name_their_classes() -> None:
    birds = {"0": "tench, Tinca tinca", "2": "crane", "1": "crane"}
    assert class_names_of(3, birds) == ("tench, Tinca tinca", "crane (1)", "crane (2)")
    for wrong in ({"0": "a"}, ["a", "b", "c"], birds | {"3": "d"}):
        with pytest.raises(ValueError, match=r"id2label in model_index\.json does not name the 3 classes"):
            class_names_of(3, wrong)


def test_an_imported_pipeline_brings_its_names(tmp_path: Path) -> None:
    """As the published DiT has them: beside the parts in model_index.json, synonyms behind commas."""
    pipeline = tmp_path / "pipeline"
    small("dit").denoiser.net.save_pretrained(pipeline / "transformer")
    DDIMScheduler(clip_sample=False).save_pretrained(pipeline / "scheduler")
    index: dict[str, object] = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    index |= {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "id2label": {"0": "tench, Tinca tinca", "1": "crane", "2": "goldfish"},
    }
    (pipeline / "model_index.json").write_text(json.dumps(index))
    fewstep("import", "pipeline", "--out", "fish.bundle", cwd=tmp_path)
    assert Bundle.load(tmp_path / "fish.bundle").manifest.signature.inputs == called("tench, Tinca tinca", "crane", "goldfish")
    index["id2label"] = {"0": "tench"}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    assert "id2label in model_index.json does not name the 3 classes" in refused("import", "pipeline", cwd=tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (PATH or FEWSTEP_CHROMIUM)")
def test_the_playground_shows_names_and_a_served_bundle_takes_them(clothes: Path) -> None:
    with serving(f"clothes={clothes}") as (_, address), browser() as page:
        page.open(f"{address}/")
        page.wait("document.querySelectorAll('#results img').length === 1")
        page.run("((model) => { model.value = 'clothes'; model.dispatchEvent(new Event('change')); })(document.forms[0].model)")
        assert page.run("[...document.querySelectorAll('#input-labels option')].map((o) => o.text)") == [
            "each in turn",
            "none",
            *CLOTHES,
        ]
        page.run("document.getElementById('input-labels').value = '2'; document.getElementById('samples').value = '1'")
        page.run("document.getElementById('form').requestSubmit()")
        page.wait("document.querySelector('#status').textContent === '1 sample from seed 0'")
        assert page.complaints == []
        asked = {"model": "clothes", "labels": ["bag"]}
        by_name, by_number = (httpx.post(f"{address}/generate", json=asked | more) for more in ({}, {"labels": [2]}))
        assert by_name.status_code == 200
        assert by_name.content == by_number.content


@pytest.mark.skipif(not CHROMIUM or not ORT_WEB, reason="needs Chromium and the npm package onnxruntime-web (FEWSTEP_ORT_WEB)")
def test_the_page_shows_names(clothes: Path, tmp_path: Path) -> None:
    package(Bundle.load(clothes), tmp_path / "out", ["web"], ort_web_package=ORT_WEB)
    with served(tmp_path / "out" / "web") as url, browser() as page:
        page.open(f"{url}?samples=6&labels=each")
        page.wait(DONE)
        options = page.run("[...document.querySelectorAll('#input-labels option')].map((o) => o.text)")
        assert options == ["each in turn", "none", *CLOTHES]
        captions = page.run("[...document.querySelectorAll('figcaption')].map((c) => c.textContent)")
        assert captions == [f"{name} · seed {i}" for i, name in enumerate([*CLOTHES, CLOTHES[0]])]
        page.open(f"{url}?samples=1&labels=none")
        page.wait(DONE)
        assert page.run("document.querySelector('figcaption').textContent") == "no labels · seed 0"
        assert page.complaints == []


def test_latents_keep_the_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    autoencoder = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(4,), norm_num_groups=2, **blocks)
    autoencoder.save_pretrained(tmp_path / "vae")
    photographs(tmp_path / "data", CLOTHES)
    encode_images(str(tmp_path / "data"), tmp_path / "vae", tmp_path / "latents")
    latents = open_examples(str(tmp_path / "latents"))
    assert latents.signature.inputs == called(*CLOTHES)


def test_the_report_names_what_it_shows(digits: Bundle, tmp_path: Path) -> None:
    words = ["zero", "one & only", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    with digits.edit() as draft:
        draft.manifest.signature = draft.manifest.signature.model_copy(update={"inputs": called(*words)})
    bundle, folder = Bundle.load(digits.root), tmp_path / "digits"
    for i, name in enumerate(words):
        (folder / name).mkdir(parents=True)
        for k in range(10):
            Image.fromarray(np.random.default_rng([i, k]).integers(0, 255, (28, 28), np.uint8)).save(folder / name / f"{k}.png")
    compare(bundle, CompareConfig(str(folder), seeds=2, seconds=0.01), ["sid1"])
    write_report(Bundle.load(bundle.root), tmp_path / "report.html")
    assert "zero, one &amp; only, two, three" in (tmp_path / "report.html").read_text("utf-8")

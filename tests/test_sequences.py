"""Sequences made from a class and an array, all the way: trained, checked, distilled, fitted, quantized, generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_cli import fewstep, refused

import fewstep as public
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.artifact.records import Distilled, Fitted, Trained
from fewstep.artifact.signature import ArrayInput, ArrayOutput, LabelInput
from fewstep.data.arrays import open_arrays
from fewstep.models.families.field_transformer import FieldTransformer
from fewstep.runtime import Generator
from fewstep.sampling.plan import sample
from fewstep.trainer.configs import TuneConfig
from fewstep.trainer.teacher import train_teacher

ABOUT = {
    "axes": [{"name": "time", "unit": "s"}],
    "columns": [{"name": "x", "unit": "mm"}, {"name": "force", "unit": "N"}],
    "classes": ["push", "pull"],
    "null": {"observation": "zeros"},
}
# A network of one's own sizes, as small as they may be; "labels" of two classes and "none".
NETWORK = {
    "_class_name": "FieldTransformer",
    "sample_size": [8],
    "in_channels": 2,
    "patch_size": [1],
    "inputs": [["labels", 3], ["observation", [3]]],
    "width": 32,
    "depth": 2,
    "heads": 2,
}
Arrays = dict[str, npt.NDArray[Any]]


def walks(count: int) -> Arrays:
    """x goes from 100 mm to where the observation says, by up to 50 mm; the force is 3 N or -3 N by the class."""
    rng = np.random.default_rng(0)
    goal, kind = np.where(np.arange(count) % 4 < 2, 50.0, -50.0), np.arange(count) % 2
    x = 100 + goal[:, None] * np.linspace(0, 1, 8)
    force = np.broadcast_to(np.where(kind, -3.0, 3.0)[:, None], x.shape)
    values = np.stack([x, force], -1) + rng.normal(0, (2.0, 0.2), (count, 8, 2))
    observation = np.stack([goal / 50, rng.normal(size=count), rng.normal(size=count)], 1)
    return {"values": values, "labels": kind, "observation": observation}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data, what samples may be made from, and a bundle that was trained by the command."""
    path = tmp_path_factory.mktemp("sequences")
    given = walks(200)
    np.savez(path / "walks.npz", **given)
    (path / "walks.json").write_text(json.dumps(ABOUT))
    np.savez(path / "told.npz", labels=given["labels"][:20], observation=given["observation"][:20])
    (path / "network.json").write_text(json.dumps(NETWORK))
    size = ("--iterations", 250, "--batch", 32, "--warmup", 10, "--lr", 3e-3, "--sigma-data", 1, "--halflife-images", 1000)
    done = fewstep("train", "--data", "walks.npz", *size, "--network", "network.json", "--out", "a.bundle", cwd=path)
    assert "walks.npz: 200 samples of time 8 x 2 columns, made from labels: 0 to 1 for a class" in done.stderr
    given = "--inputs walks.npz"
    following = [f"fewstep generate a.bundle {given} --samples 10", "fewstep compare a.bundle --data walks.npz"]
    assert f"next: {', or: '.join(following)}, or: fewstep distill a.bundle --steps 1 {given} (about " in done.stderr
    fewstep(*following[0].split()[1:], cwd=path)
    return path


@pytest.fixture
def bundle(place: Path) -> Bundle:
    return Bundle.load(place / "a.bundle")


def made_by(bundle: Bundle, plan: str) -> npt.NDArray[np.float32]:
    """40 sequences in their units: of either class, toward either side, in turn."""
    given = walks(40)
    generator = Generator(bundle, plan=plan, backend="cpu")
    made: npt.NDArray[np.float32] = generator(seeds=range(40), labels=given["labels"], observation=given["observation"])
    return made


def test_what_was_trained_says_what_it_makes_and_from_what(place: Path, bundle: Bundle) -> None:
    bundle.verify()
    signature, record = bundle.manifest.signature, bundle.manifest.records.components["teacher"]
    assert signature.inputs == (
        LabelInput(classes=2, names=("push", "pull")),
        ArrayInput(name="observation", shape=(3,), null="zeros"),
    )
    assert isinstance(signature.output, ArrayOutput)
    assert signature.output.about == "8 time (s), columns x (mm), force (N)"
    samples = open_arrays(place / "walks.npz")
    assert signature == samples.signature
    assert (bundle.manifest.state.shape, bundle.manifest.denoisers["teacher"].kind) == ((2, 8), "FieldTransformer")
    assert isinstance(record, Trained)
    assert (record.data, record.data_sha256, record.samples, record.rows) == ("walks.npz", samples.sha256, 160, 200)


def test_samples_are_in_units_and_follow_the_class_and_the_array(bundle: Bundle) -> None:
    made = made_by(bundle, "heun18")
    assert (made.shape, made.dtype) == ((40, 8, 2), np.float32)
    given = walks(40)
    for kind in (0, 1):
        assert np.median(made[given["labels"] == kind, :, 1]) == pytest.approx((3, -3)[kind], abs=1)
    for side in (-1, 1):
        ends = made[given["observation"][:, 0] == side, -1, 0]
        assert np.median(ends) == pytest.approx(100 + 50 * side, abs=15)
    assert np.median(made[:, 0, 0]) == pytest.approx(100, abs=15)


def test_it_is_distilled_fitted_quantized_exported_checked_and_generated_by_the_commands(place: Path) -> None:
    def run(*words: object) -> Any:
        return json.loads(fewstep(*words, "--json", cwd=place).stdout)

    few = ("--iterations", 2, "--batch", 4)
    run("distill", "a.bundle", "--steps", 2, "--guidance", 1, "--inputs", "told.npz", *few)
    run(
        "distill",
        "a.bundle",
        "--steps",
        1,
        "--guidance",
        2,
        "--data",
        "walks.npz",
        "--samples",
        50,
        "--adversarial-from",
        0,
        *few,
    )
    fit = ("--inputs", "told.npz", "--batch", 4)
    run("calibrate", "a.bundle", "--steps", 3, "--guidance", 2, "--samples", 8, "--unseen", 8, "--iterations", 2, *fit)
    run("calibrate", "a.bundle", "--method", "iia-ddim", "--steps", 3, "--fine", 2, "--samples", 8, *fit)
    run(
        "quantize",
        "a.bundle",
        "--plan",
        "sid1",
        "--precision",
        "int8",
        "--samples",
        4,
        "--min-psnr",
        10,
        "--inputs",
        "told.npz",
    )
    for plan, precision in (("sid1", "fp32,fp16,int8"), ("sid2", "fp32"), ("table3", "fp32"), ("iia-ddim3", "fp32")):
        run("export", "a.bundle", "--plan", plan, "--precision", precision)
    checked = run("check", "a.bundle")["graphs"]
    assert len(checked) == 7
    assert all(graph["ok"] for graph in checked)
    bundle = Bundle.load(place / "a.bundle")
    records, plans = bundle.manifest.records, bundle.manifest.records.plans
    assert isinstance(records.components["sid1"], Distilled)
    assert records.components["sid1"].settings["guidance"] == 2.0
    assert records.components["sid1"].samples == 54  # every third of 160, no fewer than 50
    assert all(isinstance(plans[name], Fitted) and plans[name].inputs_sha256 for name in ("table3", "iia-ddim3"))  # type: ignore[union-attr]
    result = run("generate", "a.bundle", "--plan", "table3", "--inputs", "told.npz", "--samples", 40, "--out", "made.npy")
    assert result["seeds"] == list(range(40))
    made = np.load(place / "made.npy")
    assert (made.shape, made.dtype) == ((40, 8, 2), np.float32)
    assert np.isfinite(made).all()
    told = dict(np.load(place / "told.npz"))
    again = Generator(bundle, plan="table3", backend="cpu")(seeds=[21], **{name: rows[1:2] for name, rows in told.items()})
    np.testing.assert_allclose(made[21:22], again, rtol=1e-4, atol=1e-3)


def test_a_graph_makes_what_the_network_makes(bundle: Bundle) -> None:
    """By torch, walked by hand from the runtime's own noise."""
    import torch

    from fewstep.models.decoder import as_output
    from fewstep.models.denoiser import load_network
    from fewstep.runtime.noise import noise

    given, denoiser, plan = walks(40), load_network(bundle, "teacher"), bundle.plan("heun18")
    assert isinstance(denoiser.net, FieldTransformer)
    told = torch.tensor(given["labels"]), torch.tensor(given["observation"], dtype=torch.float32)
    with torch.no_grad():
        start = plan.begin(torch.tensor(noise(range(40), (1, 2, 8)))[:, 0])
        expected = as_output(sample(lambda x, sigma: denoiser(x, sigma, *told), start, plan), bundle.manifest.output)
    np.testing.assert_allclose(made_by(bundle, "heun18"), expected, rtol=1e-3, atol=0.05)


def test_more_training_is_in_the_units_of_the_bundle(place: Path, tmp_path: Path) -> None:
    """Other samples have another mean and deviation; those of the bundle stay what its numbers are free of."""
    import shutil

    root = Path(shutil.copytree(place / "a.bundle", tmp_path / "a.bundle"))
    given = walks(40)
    np.savez(tmp_path / "more.npz", **given | {"values": 2 * given["values"] + 7})
    (tmp_path / "more.json").write_text(json.dumps(ABOUT))
    before, samples = Bundle.load(root), open_arrays(tmp_path / "more.npz")
    tuned = train_teacher(root, samples, TuneConfig(iterations=2, batch=4), start="teacher", name="tuned")
    assert tuned.manifest.signature == before.manifest.signature != samples.signature
    assert component_digest(tuned.manifest, "teacher") == component_digest(before.manifest, "teacher")
    assert tuned.manifest.records.components["tuned"].rows == 40  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("axes", "names", "kind"),
    [
        ((8, 4), ("labels",), "UNet2DModel"),
        ((8, 4), (), "UNet2DModel"),
        ((8, 4), ("labels", "observation"), "FieldTransformer"),
        ((5,), ("labels",), "FieldTransformer"),
        ((2, 4, 6), ("observation",), "FieldTransformer"),
    ],
    ids=str,
)
def test_a_network_for_every_rank_and_its_sheets_as_numbers(
    axes: tuple[int, ...], names: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    given = {name: array for name, array in walks(20).items() if name in names}
    np.savez(tmp_path / "a.npz", values=np.random.default_rng(0).normal(500, 9, (20, *axes, 3)), **given)
    about: dict[str, Any] = {"iterations": 2, "batch": 4, "mixed_precision": "no", "log": tmp_path / "log"}
    bundle = public.train(tmp_path / "a.bundle", str(tmp_path / "a.npz"), **about)
    bundle.verify()
    assert bundle.manifest.denoisers["teacher"].kind == kind
    assert bundle.manifest.state.shape == (3, *axes)
    sheet = np.load(tmp_path / "log" / "teacher-000002.npy")
    assert (sheet.shape, sheet.dtype) == ((20, *axes, 3), np.float32)
    assert 400 < np.median(sheet) < 600


def test_what_does_not_go_with_it_is_refused(place: Path, tmp_path: Path) -> None:
    given = walks(20)
    np.savez(place / "few.npz", observation=given["observation"])
    np.savez(place / "wide.npz", labels=given["labels"], observation=np.zeros((20, 4)))
    short = ("distill", "a.bundle", "--guidance", 1, "--name", "x")
    assert "give the tensors labels, observation, got none" in refused(*short, cwd=place)
    assert "give the tensors labels, observation, got observation" in refused(*short, "--inputs", "few.npz", cwd=place)
    assert "the array observation has shape (N, 3), got (20, 4)" in refused(*short, "--inputs", "wide.npz", cwd=place)
    for change in ({"values": np.zeros((20, 9, 2))}, {"observation": np.zeros((20, 4))}, {"speed": np.zeros(20)}):
        np.savez(tmp_path / "other.npz", **given | change)
        (tmp_path / "other.json").write_text(json.dumps(ABOUT))
        said = refused(*short, "--data", tmp_path / "other.npz", cwd=place)
        assert "a.bundle makes other samples than" in said
    for flag, value in (("--channels", "8"), ("--patch", 2), ("--layers", 3), ("--attention", None)):
        words = [flag] if value is None else [flag, value]
        said = refused("train", "--data", "walks.npz", *words, "--out", "b.bundle", cwd=place)
        assert f"{flag} is of a U-Net, and a FieldTransformer is made for walks.npz, whose sizes a --network says" in said
    np.savez(tmp_path / "odd.npz", values=np.zeros((20, 8, 5, 1)))
    said = refused("train", "--data", tmp_path / "odd.npz", "--out", "b.bundle", cwd=place)
    assert "sides of 8x5 do not divide by 4 (patch 2, 2 levels); choose fewer levels" in said
    said = refused("train", "--data", "walks.npz", "--network", "network.json", "--patch", 2, "--out", "b.bundle", cwd=place)
    assert "a patch of 2 folds two axes, and this state has 1; leave out the patch" in said
    said = refused("train", "--data", "mnist5k", "--start", "teacher", "--out", "a.bundle", cwd=place)
    assert "mnist5k is not of the classes of a.bundle" in said
    assert not Bundle.load(place / "a.bundle").manifest.components.keys() & {"x"}

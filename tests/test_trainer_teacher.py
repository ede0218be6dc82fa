"""Teachers of every kind, small: what they are told, what they become, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from small import small
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.artifact.records import Look, Trained
from fewstep.artifact.signature import ImageOutput, Input, LabelInput, Signature
from fewstep.calibration.teacher import Teacher
from fewstep.cli.make import _after_training
from fewstep.data import Images
from fewstep.models.denoiser import Denoiser, load_network
from fewstep.sampling.plan import Plan
from fewstep.system.console import Paced
from fewstep.trainer.checkpoint import checkpoint_path
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.levels import Levels
from fewstep.trainer.teacher import TeacherRun, train_teacher

LABELS = (LabelInput(classes=2),)
CHANNELS = TeacherConfig().channels  # as they are where they do not count
CONFIG = TeacherConfig(iterations=3, warmup=1, batch=4, channels=(8,), patch=1)
DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 1,
    "sample_size": 8,
    "num_embeds_ada_norm": 2,
}


def images(inputs: tuple[Input, ...] = LABELS, level: int | None = None) -> Images:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8)
    pixels = pixels if level is None else np.full_like(pixels, level)
    signature = Signature(inputs=inputs, output=ImageOutput(channels=1, height=8, width=8))
    return Images("made up", signature, pixels, np.arange(32), np.arange(32) % 2 if inputs else np.zeros(32, np.int64))


@pytest.mark.parametrize("kind", ["edm", "eps", "v", "flow"])
def test_a_teacher_of_every_kind_learns_a_constant(kind: str, tmp_path: Path) -> None:
    """All images are one grey: the denoised estimate must come to it, whatever the network estimates."""
    config = TeacherConfig(
        iterations=150,
        warmup=10,
        batch=16,
        lr=3e-3,
        channels=(16,),
        patch=2,
        kind=kind,
        tau=1.0,
        halflife_images=200,
    )
    bundle = train_teacher(tmp_path / "a.bundle", images((), level=200), config)
    assert bundle.manifest.denoisers["teacher"].parametrisation.kind == kind
    teacher, grey = Teacher(bundle), 2 * 200 / 255 - 1
    noise = teacher.draw(64, seed=0).noise[:, 0]
    alpha, sigma = teacher.denoiser.parametrisation.at(torch.ones(64))  # as much noise as image: no estimate is good by itself
    with torch.no_grad():
        found = teacher.denoiser(Levels(alpha, sigma).noised(torch.full_like(noise, grey), noise), sigma)
    assert float((found - grey).square().mean().sqrt()) < 0.4


@pytest.mark.parametrize(
    "choices",
    [
        {"network": DIT, "channels": CHANNELS},
        {"network": DIT, "channels": CHANNELS, "kind": "v", "skip": 49},
        {"kind": "eps", "shared": True},
        {"curriculum": 0.3, "schedule": "momentum-decay"},
        {"kind": "flow", "tau": 1.0, "curriculum": 0.3, "schedule": "compensation-only"},
    ],
    ids=str,
)
def test_every_switch_makes_another_teacher_that_samples(choices: dict, tmp_path: Path) -> None:
    bundle = train_teacher(tmp_path / "a.bundle", images(), TeacherConfig(**(vars(CONFIG) | choices)))
    teacher = Teacher(bundle)
    assert torch.isfinite(teacher.sample(bundle.plan("heun18"), teacher.draw(2, seed=0))).all()
    plain = train_teacher(tmp_path / "b.bundle", images(), TeacherConfig(**(vars(CONFIG) | {"tau": 0.5})))
    assert component_digest(bundle.manifest, "teacher") != component_digest(plain.manifest, "teacher")


def test_a_metric_is_asked_as_often_as_wanted_and_survives_a_stop(tmp_path: Path) -> None:
    """A run that dies in the middle asks again only for what no checkpoint holds."""
    config = replace(CONFIG, iterations=6, validate_every=2, checkpoint_every=2)
    seen: list[int] = []

    def metric(_ema: Denoiser, plan: Plan) -> float:
        assert plan.nfe == 35
        if len(seen) == 2:
            seen.append(-1)
            raise KeyboardInterrupt
        seen.append(len(seen))
        return float(len(seen))

    with pytest.raises(KeyboardInterrupt):
        train_teacher(tmp_path / "a.bundle", images(), config, validate=metric)
    bundle = train_teacher(tmp_path / "a.bundle", images(), config, validate=metric)
    record = bundle.manifest.records.components["teacher"]
    assert isinstance(record, Trained)
    assert record.metrics == [Look(iteration=i, value=value) for i, value in ((2, 1.0), (4, 2.0), (6, 4.0))]


def test_a_network_of_ones_own_by_the_command(tmp_path: Path) -> None:
    config = small("unet").denoiser.net.config
    own = {
        **config,
        "_class_name": "UNet2DModel",
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 14,
        "num_class_embeds": 11,
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    fewstep("train", "--iterations", 2, "--batch", 4, "--kind", "v", "--network", "own.json", "--out", "a.bundle", cwd=tmp_path)
    entry = Bundle.load(tmp_path / "a.bundle").manifest.denoisers["teacher"]
    assert (entry.parametrisation.kind, entry.patch) == ("v", 2)
    (tmp_path / "own.json").write_text(json.dumps(own | {"sample_size": 9}))
    assert "has sample_size (9, 9), the bundle needs (14.0, 14.0)" in refused("train", "--network", "own.json", cwd=tmp_path)
    said = refused("train", "--network", "own.json", "--layers", 2, cwd=tmp_path)
    assert "--layers is of a U-Net, and the network's own configuration says its sizes; leave it out" in said
    (tmp_path / "own.json").write_text("[]")
    assert "holds no JSON object" in refused("train", "--network", "own.json", cwd=tmp_path)
    (tmp_path / "own.json").write_text(json.dumps({"_class_name": "LuminaNextDiT2DModel"}))
    assert "the network is a LuminaNextDiT2DModel; this version" in refused("train", "--network", "own.json", cwd=tmp_path)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"kind": "x0"}, "estimates one of edm, eps, v, flow, got 'x0'"),
        ({"kind": "flow", "tau": 0.5}, "train a flow with tau 1"),
        ({"schedule": "cosine"}, "a schedule is linear, constant, momentum-decay, compensation-only"),
        ({"curriculum": 0.0}, "a width above 0 that is finite"),
        ({"tau": float("nan")}, "0 <= tau <= 1"),
        ({"lr": -1.0}, "a learning rate is 0 or more"),
        ({"patch": 0}, "a patch has a side of 1 pixel or more, got 0"),
    ],
)
def test_what_no_teacher_can_be(choices: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TeacherConfig(**choices)


def test_after_training_the_teacher_can_be_seen_and_the_next_verb_is_estimated(tmp_path: Path) -> None:
    done = fewstep("train", "--iterations", 4, "--batch", 4, "--out", "a.bundle", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["graphs"] == ["heun18.fp32"] or json.loads(done.stdout)["graphs"] == ["heun18.loop.fp32"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    commands = line.removeprefix("next: ").split(", or: ")
    assert commands[:2] == ["fewstep generate a.bundle", "fewstep compare a.bundle --data mnist5k"]
    assert re.fullmatch(r"fewstep distill a\.bundle --steps 1 \(about \d+:\d\d here\)", commands[2])
    fewstep(*commands[0].split()[1:], cwd=tmp_path)
    assert Image.open(tmp_path / "grid.png").size == (10 * 28 * 4, 28 * 4)
    fewstep("check", "a.bundle", cwd=tmp_path)


def test_the_estimate_is_what_updates_took_times_what_a_distillation_computes(tmp_path: Path) -> None:
    bundle = train_teacher(tmp_path / "a.bundle", images(()), CONFIG)
    for seconds, batch, clock in ((0.1, 32, "6:40"), (0.1, 64, "3:20"), (0.2, 32, "13:20")):
        (_, command) = _after_training(Path("a"), bundle, "photos", seconds, batch)  # without a graph yet
        assert command == f"fewstep distill a --steps 1 (about {clock} here)"
    assert _after_training(Path("a"), bundle, "photos", None, 32) == ["fewstep export a", "fewstep distill a --steps 1"]


def test_a_paced_track_shows_what_it_is_given_and_leaves_out_the_first_steps() -> None:
    seen: list[str] = []

    def shown(steps: Sequence[int], what: str) -> Sequence[int]:
        seen.append(what)
        return steps

    pace = Paced(shown)
    assert pace.seconds is None
    for step in pace(range(5), "learn"):
        time.sleep(0.3 if step < 2 else 0.01)
    assert (seen, len(pace.took)) == (["learn"], 5)
    assert pace.seconds is not None
    assert 0.01 <= pace.seconds < 0.3


def test_where_nothing_writes_graphs_training_ends_well(tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from fewstep.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--iterations", "1", "--batch", "2", "--out", "a.bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "no graph was written, for onnx is not installed" in done.stderr
    assert "next: fewstep export a.bundle, or: fewstep distill a.bundle --steps 1\n" in done.stderr
    Bundle.load(tmp_path / "a.bundle").verify()


def test_a_run_that_stops_being_finite_goes_back_and_draws_other_numbers(tmp_path: Path) -> None:
    """Weights that are spoilt once, after a checkpoint: from there the run goes on with other numbers."""
    config = replace(CONFIG, iterations=6, checkpoint_every=2)
    update, seen = TeacherRun.update, list[tuple[int, int]]()

    def spoilt_once(self: TeacherRun, step: int) -> Any:
        seen.append((step, self.progress.retries))
        found = update(self, step)
        if step == 2 and not self.progress.retries:
            with torch.no_grad():
                next(self.denoiser.parameters()).fill_(float("nan"))
        return found

    with patch.object(TeacherRun, "update", spoilt_once):
        bundle = train_teacher(tmp_path / "a.bundle", images(), config)
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1), (5, 1)]
    weights = load_network(bundle, "teacher").state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    whole = train_teacher(tmp_path / "whole.bundle", images(), config)
    assert component_digest(whole.manifest, "teacher") != component_digest(bundle.manifest, "teacher")


def test_a_run_that_never_stays_finite_is_given_up_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    sentence = "did not stay finite, with 4 draws of random numbers after iteration 0; lower --lr"
    config = replace(CONFIG, iterations=4, checkpoint_every=2, lr=float("inf"))
    with pytest.raises(ValueError, match=sentence):
        train_teacher(tmp_path / "a.bundle", images(), config)
    assert not (tmp_path / "a.bundle").exists()
    assert checkpoint_path(tmp_path / "a.bundle", "teacher").is_dir()


def test_a_stopped_run_keeps_count_of_how_often_it_went_back(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=8, checkpoint_every=2)
    update, seen = TeacherRun.update, list[tuple[int, int]]()

    def spoilt_twice(self: TeacherRun, step: int) -> Any:
        seen.append((step, self.progress.retries))
        found = update(self, step)
        if (step, self.progress.retries) in ((0, 0), (4, 1)):
            with torch.no_grad():
                next(self.denoiser.parameters()).fill_(float("inf"))
        if (step, self.progress.retries) == (2, 1) and seen.count((2, 1)) == 1:
            raise KeyboardInterrupt
        return found

    with patch.object(TeacherRun, "update", spoilt_twice):
        with pytest.raises(KeyboardInterrupt):
            train_teacher(tmp_path / "a.bundle", images(), config)
        train_teacher(tmp_path / "a.bundle", images(), config)
    assert [retries for step, retries in seen if step in (4, 6)] == [1, 2, 2]


def test_compiling_without_a_compiler_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="compiling needs a C\\+\\+ compiler here, and there is no g\\+\\+"):
        train_teacher(tmp_path / "a.bundle", images(), replace(CONFIG, compile=True))
    assert not (tmp_path / "a.bundle").exists()

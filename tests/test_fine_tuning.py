"""Training that goes on from a network: beside the one that there was, of what that one is, and bit for bit after a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import fewstep, refused
from test_trainer_teacher import images

import fewstep as public
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.artifact.records import Trained
from fewstep.models.denoiser import load_network
from fewstep.trainer.configs import TeacherConfig, TuneConfig
from fewstep.trainer.teacher import train_teacher

TEACHER = TeacherConfig(iterations=3, warmup=1, batch=4, channels=(8,), patch=1)
TUNE = TuneConfig(iterations=4, warmup=1, batch=4, checkpoint_every=2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """With a small teacher."""
    return train_teacher(tmp_path / "a.bundle", images(), TEACHER)


def files_of(bundle: Bundle, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.component(name).iterdir()}


def digest_of(bundle: Bundle, name: str) -> str:
    return component_digest(bundle.manifest, name)


def stops(steps: Sequence[int], _what: str) -> Iterator[int]:
    """A track that is stopped after three steps, of which a checkpoint holds two."""
    yield from steps[:3]
    raise KeyboardInterrupt


def test_a_network_goes_on_beside_the_one_that_it_began_as(bundle: Bundle) -> None:
    before, manifest = files_of(bundle, "teacher"), bundle.manifest
    tuned = public.train(bundle.root, images(), start="teacher", iterations=2, batch=4, license="CC0")
    tuned.verify()
    assert files_of(tuned, "teacher") == before
    assert tuned.manifest.plans["heun18"] == manifest.plans["heun18"]
    assert tuned.manifest.records.components["teacher"] == manifest.records.components["teacher"]
    assert digest_of(tuned, "teacher_tuned") != digest_of(tuned, "teacher")
    assert tuned.manifest.signature == manifest.signature
    assert tuned.manifest.default == "teacher_tuned"
    assert tuned.manifest.plans["teacher_tuned"].denoiser == "teacher_tuned"
    np.testing.assert_array_equal(tuned.plan("teacher_tuned").b, tuned.plan("heun18").b)
    record = tuned.manifest.records.components["teacher_tuned"]
    assert isinstance(record, Trained)
    assert (record.start, record.start_sha256) == ("teacher", digest_of(bundle, "teacher"))
    assert record.license == "CC0"
    assert record.settings.keys() == asdict(TUNE).keys() - {"mixed_precision", "checkpoint_every", "shard"}


def test_it_begins_as_what_it_goes_on_from(bundle: Bundle) -> None:
    tuned = train_teacher(bundle.root, images(), replace(TUNE, lr=1e-12), start="teacher", name="same")
    for a, b in zip(*(load_network(tuned, name).parameters() for name in ("teacher", "same")), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_it_stays_what_it_estimates(kind: str, tmp_path: Path) -> None:
    bundle = train_teacher(tmp_path / "a.bundle", images(), replace(TEACHER, kind=kind))
    tuned = train_teacher(bundle.root, images(), TUNE, start="teacher", name="tuned")
    assert tuned.manifest.denoisers["tuned"].parametrisation == bundle.manifest.denoisers["teacher"].parametrisation
    assert tuned.manifest.records.components["tuned"].settings["tau"] == (1.0 if kind == "flow" else 0.99)  # type: ignore[union-attr]
    if kind == "flow":
        with pytest.raises(ValueError, match="train a flow with tau 1"):
            train_teacher(bundle.root, images(), replace(TUNE, tau=0.5), start="teacher", name="again")


def test_a_stopped_run_goes_on_to_the_same_weights(bundle: Bundle) -> None:
    whole = train_teacher(bundle.root, images(), TUNE, start="teacher", name="whole")
    with pytest.raises(KeyboardInterrupt):
        train_teacher(bundle.root, images(), TUNE, start="teacher", name="stopped", track=stops)
    assert "stopped" not in Bundle.load(bundle.root).manifest.components
    resumed = train_teacher(bundle.root, images(), TUNE, start="teacher", name="stopped")
    assert files_of(resumed, "stopped") == files_of(whole, "whole")
    assert not list(bundle.root.parent.glob("*.checkpoint"))


def test_a_run_does_not_go_on_from_another_network(bundle: Bundle) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_teacher(bundle.root, images(), TUNE, start="teacher", name="tuned", track=stops)
    train_teacher(bundle.root, images(), replace(TUNE, iterations=1), start="teacher", name="other")
    with pytest.raises(ValueError, match=r"of a run with other settings .*start was teacher and is other"):
        train_teacher(bundle.root, images(), TUNE, start="other", name="tuned")


def test_each_goes_on_from_the_last(bundle: Bundle) -> None:
    first = train_teacher(bundle.root, images(), TUNE, start="teacher", name="first")
    second = train_teacher(first.root, images(), TUNE, start="first", name="second")
    record = second.manifest.records.components["second"]
    assert isinstance(record, Trained)
    assert (record.start, record.start_sha256) == ("first", digest_of(first, "first"))
    assert len({digest_of(second, name) for name in ("teacher", "first", "second")}) == 3


def test_what_cannot_go_on_gets_a_sentence(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one that is there goes on by a TuneConfig; give that"):
        train_teacher(bundle.root, images(), TEACHER, start="teacher", name="tuned")
    with pytest.raises(ValueError, match="a new network is made by a TeacherConfig"):
        train_teacher(tmp_path / "b.bundle", images(), TUNE)
    for name in ("teacher", "heun18"):
        with pytest.raises(ValueError, match=f"a.bundle has '{name}' already; choose another name"):
            train_teacher(bundle.root, images(), TUNE, start="teacher", name=name)
    with pytest.raises(ValueError, match="has no network 'student'"):
        train_teacher(bundle.root, images(), TUNE, start="student", name="tuned")
    with pytest.raises(FileNotFoundError, match=r"b.bundle is not a bundle"):
        train_teacher(tmp_path / "b.bundle", images(), TUNE, start="teacher", name="tuned")
    with pytest.raises(ValueError, match="makes samples of 2 classes, made up has samples without classes"):
        train_teacher(bundle.root, images(()), TUNE, start="teacher", name="tuned")
    assert Bundle.load(bundle.root).manifest == bundle.manifest


def test_by_the_command_with_the_classes_of_the_bundle(tmp_path: Path) -> None:
    """A folder that lacks a class is numbered as the bundle numbers them; what is next is printed, and works."""
    for folder, names in (("photos", ("bus", "car", "train")), ("more", ("car", "train"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(5):
                Image.new("L", (8, 8) if folder == "photos" else (20, 16), 50 * i).save(tmp_path / folder / name / f"{i}.png")
    size = ("--iterations", 2, "--batch", 4)
    fewstep("train", "--data", "photos", *size, "--channels", "8", "--patch", 1, "--out", "a.bundle", cwd=tmp_path)
    before = files_of(Bundle.load(tmp_path / "a.bundle"), "teacher")
    said = refused("train", "--data", "more", "--start", "teacher", "--resolution", 16, "--out", "a.bundle", cwd=tmp_path)
    assert "images are resized to those that a.bundle makes; leave --resolution out" in said
    done = fewstep("train", "--data", "more", "--start", "teacher", *size, "--out", "a.bundle", cwd=tmp_path)
    assert "classes are numbered as a.bundle numbers them" in done.stderr
    bundle = Bundle.load(tmp_path / "a.bundle")
    assert files_of(bundle, "teacher") == before
    assert set(bundle.manifest.denoisers) == {"teacher", "teacher_tuned"}
    assert {graph.plan for graph in bundle.manifest.graphs.values()} == {"heun18", "teacher_tuned"}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    command = line.split(", or: ")[-1].split(" (about")[0].split()
    assert command[1:] == ["distill", "a.bundle", "--steps", "1", "--teacher", "teacher_tuned"]
    fewstep(*command[1:], "--iterations", 1, "--batch", 2, cwd=tmp_path)
    record = Bundle.load(tmp_path / "a.bundle").manifest.records.components["sid1"]
    assert (record.teacher, record.start) == ("teacher_tuned", "teacher_tuned")  # type: ignore[union-attr]
    again = ("train", "--data", "more", "--out", "a.bundle")
    assert "has 'teacher_tuned' already; choose another --name" in refused(*again, "--start", "teacher", cwd=tmp_path)
    assert "has no network 'student'" in refused(*again, "--start", "student", cwd=tmp_path)
    assert "b.bundle is not a bundle" in refused("train", "--out", "b.bundle", "--start", "teacher", cwd=tmp_path)
    (tmp_path / "more" / "plane").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "more" / "plane" / "0.png")
    said = refused(*again, "--start", "teacher", "--name", "third", *size, cwd=tmp_path)
    assert "more is not of the classes of a.bundle" in said

"""Kill -9 in the middle of a run and start it again: the weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewstep.artifact.bundle import Draft
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.data import open_images
from fewstep.models.denoiser import save_network, unet
from fewstep.trainer import checkpoint
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher

# Imports and runs once, then forks a process for every attempt and kills it at a random moment after it first saved; the last
# attempt is left alone. `run` is defined by what is put before.
KILLS = """
import os, random, shutil, signal, time
from pathlib import Path
from fewstep.trainer.checkpoint import checkpoint_path

def written(saved):
    try:
        return saved.stat().st_mtime_ns
    except FileNotFoundError:  # between the renames of a save
        return 0

def attempt(bundle, kill_after):
    saved = checkpoint_path(bundle, NAME)
    before = written(saved)
    child = os.fork()
    if not child:
        run(bundle)
        os._exit(0)
    while written(saved) in (0, before):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
        time.sleep(0.001)
    time.sleep(kill_after)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL

whole, warm, killed = (Path(sys.argv[1], f"{name}.bundle") for name in ("whole", "warm", "killed"))
run(warm)
begin = time.monotonic()
run(whole)
between = (time.monotonic() - begin) / STEPS * EVERY
rng = random.Random(0)
for _ in range(int(sys.argv[2])):
    attempt(killed, rng.uniform(0, between / 2))
run(killed)
"""
COMMON = """
import sys
import numpy as np
import torch
from fewstep.artifact.bundle import Bundle
from fewstep.data import Images
torch.set_num_threads(1)
EVERY = 5
"""
TRAIN = """
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher
NAME, STEPS = "teacher", 200

def run(bundle):
    images = Images.of(np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32) % 2)
    config = TeacherConfig(iterations=STEPS, batch=4, channels=(8,), patch=1, checkpoint_every=EVERY)
    train_teacher(bundle, images, config)
"""
TUNE = """
from fewstep.trainer.configs import TuneConfig
from fewstep.trainer.teacher import train_teacher
NAME, STEPS = "tuned", 100

def run(bundle):
    images = Images.of(np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32) % 2)
    config = TuneConfig(iterations=STEPS, batch=4, checkpoint_every=EVERY)
    train_teacher(bundle, images, config, start="teacher", name=NAME)
"""
DISTILL = """
from fewstep.trainer.configs import SidConfig
from fewstep.trainer.sid import distill
NAME, STEPS = "sid2", 50

def run(bundle):
    distill(Bundle.load(bundle), NAME, SidConfig(steps=2, iterations=STEPS, batch=4, checkpoint_every=EVERY))
"""


def _kill_and_go_on(code: str, directory: Path, kills: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", COMMON + code + KILLS, str(directory), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def _weights(bundle: Path, network: str) -> dict[str, torch.Tensor]:
    (path,) = (bundle / "components" / network).glob("*.safetensors")
    return load_file(path)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_teacher_run_killed_20_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    _kill_and_go_on(TRAIN, tmp_path, 20)
    _same(_weights(tmp_path / "whole.bundle", "teacher"), _weights(tmp_path / "killed.bundle", "teacher"))
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".bundle"] == []


def _teachers(directory: Path) -> None:
    """The same network in each of three bundles."""
    for name in ("whole", "warm", "killed"):
        torch.manual_seed(0)
        signature = Signature(inputs=(LabelInput(classes=2),), output=ImageOutput(channels=1, height=8, width=8))
        state = signature.output.state
        denoiser = unet(state, signature.inputs, channels=(8,), layers=1, attention=False, patch=1)
        with Draft.create(directory / f"{name}.bundle", signature) as draft:
            save_network(draft, "teacher", denoiser)


def test_a_run_from_a_network_killed_5_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    _teachers(tmp_path)
    _kill_and_go_on(TUNE, tmp_path, 5)
    tuned, teacher = (_weights(tmp_path / "killed.bundle", n) for n in ("tuned", "teacher"))
    _same(_weights(tmp_path / "whole.bundle", "tuned"), tuned)
    assert not torch.equal(tuned["conv_in.weight"], teacher["conv_in.weight"])


def test_a_distillation_killed_5_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    _teachers(tmp_path)
    _kill_and_go_on(DISTILL, tmp_path, 5)
    student, teacher = (_weights(tmp_path / "killed.bundle", n) for n in ("sid2", "teacher"))
    _same(_weights(tmp_path / "whole.bundle", "sid2"), student)
    assert not torch.equal(student["conv_in.weight"], teacher["conv_in.weight"])


@pytest.fixture
def parts() -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"net": net, "optimizer": optimizer}


def test_a_checkpoint_of_other_settings_is_refused(parts: checkpoint.Parts, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={"lr": 0.1, "seed": 0})
    assert checkpoint.load(path, parts, settings={"lr": 0.1, "seed": 0}).step == 3
    with pytest.raises(ValueError, match=r"other settings \(lr was 0.1 and is 0.2\); remove it"):
        checkpoint.load(path, parts, settings={"lr": 0.2, "seed": 0})


@pytest.mark.parametrize("damage", ["truncated", "gone", "foreign", "run.json", "a file"])
def test_a_damaged_or_foreign_checkpoint_is_refused(damage: str, parts: checkpoint.Parts, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    (tensors_file,) = path.glob("*.safetensors")
    if damage == "truncated":
        tensors_file.write_bytes(tensors_file.read_bytes()[:-10])
    elif damage == "gone":
        tensors_file.unlink()
    elif damage == "foreign":
        save_file({"x": torch.ones(1)}, tensors_file)
    elif damage == "run.json":
        (path / "run.json").write_text("{")
    else:
        shutil.rmtree(path)
        path.write_text("")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path, parts, settings={})


def test_two_processes_are_never_at_one_run(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    with checkpoint.alone(path):
        sentence = r"another process is at this run now \(a.checkpoint\); wait for its end"
        with pytest.raises(ValueError, match=sentence), checkpoint.alone(path):
            pass
        with checkpoint.alone(tmp_path / "b.checkpoint"):
            pass
    with checkpoint.alone(path):  # free again
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    for name in ("cat/1", "cat/2", "dog/3", "dog/4"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), int(name[-1]), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    images, config = open_images(str(tmp_path / "photos")), TeacherConfig(iterations=2, batch=2, channels=(8,), patch=1)
    out = tmp_path / "a.bundle"

    def stops(_steps: Sequence[int], _what: str) -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher(out, images, replace(config, checkpoint_every=1), track=stops)
    shutil.copy(tmp_path / "photos/dog/3.png", tmp_path / "photos/cat/1.png")
    with pytest.raises(ValueError, match=r"of a run with other settings \(data_sha256 was"):
        train_teacher(out, open_images(str(tmp_path / "photos")), config)
    busy = pytest.raises(ValueError, match="another process is at this run now")
    with checkpoint.alone(checkpoint.checkpoint_path(out, "teacher")), busy:
        train_teacher(out, images, config)
    bundle = train_teacher(out, images, config)
    with checkpoint.alone(checkpoint.checkpoint_path(out, "student")), busy:
        distill(bundle, "student", SidConfig(iterations=1, batch=2))
    assert bundle.manifest.signature.inputs == (LabelInput(classes=2, names=("cat", "dog")),)
    assert "2 classes (0 cat, 1 dog)" in (out / "card.md").read_text()


def test_what_was_saved_is_what_is_loaded(parts: checkpoint.Parts, tmp_path: Path) -> None:
    """Into other weights, and an optimizer that has made no update yet."""
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={}, state={"best": 1.5})
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    found = checkpoint.load(path, {"net": net, "optimizer": optimizer}, settings={})
    assert (found.step, found.state) == (3, {"best": 1.5})
    _same(dict(net.state_dict()), dict(parts["net"].state_dict()))
    mine, theirs = (o.state_dict()["state"] for o in (optimizer, parts["optimizer"]))
    assert mine.keys() == theirs.keys()
    for index in mine:
        _same(mine[index], theirs[index])


def test_a_kill_between_putting_away_and_putting_in_place_loses_nothing(parts: checkpoint.Parts, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    path.rename(tmp_path / "a.checkpoint.old")
    assert checkpoint.load(path, parts, settings={}).step == 3
    checkpoint.save(path, parts, step=4, settings={})
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]


def test_a_failed_save_keeps_the_last_checkpoint(
    parts: checkpoint.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint.saver, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, parts, step=4, settings={})
    monkeypatch.undo()
    assert checkpoint.load(path, parts, settings={}).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]


def test_a_kill_before_the_old_one_is_let_go_leaves_nothing_in_the_way(parts: checkpoint.Parts, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    shutil.copytree(path, tmp_path / "a.checkpoint.old")
    checkpoint.save(path, parts, step=4, settings={})
    assert checkpoint.load(path, parts, settings={}).step == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]


def test_where_the_new_one_cannot_be_put_in_place_the_old_one_stays(
    parts: checkpoint.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        checkpoint.save(path, parts, step=4, settings={})
    monkeypatch.undo()
    assert checkpoint.load(path, parts, settings={}).step == 3

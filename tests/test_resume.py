"""Kill -9 in the middle of a run and start it again: the weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewstep import tensors
from fewstep.bundle import Bundle, Draft
from fewstep.denoiser import save_network, unet
from fewstep.manifest import Condition, ImageSpec
from fewstep.trainer import checkpoint

COMMON = (
    "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
    "import numpy as np; from fewstep.data import Images; from fewstep.bundle import Bundle\n"
    "from fewstep.manifest import Condition, ImageSpec\n"
)
TRAIN = (
    "from fewstep.trainer.teacher import TeacherConfig, train_teacher\n"
    "images = Images('made up', ImageSpec(channels=1, height=8, width=8), Condition(kind='labels', classes=2),\n"
    "    np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32), np.arange(32) % 2)\n"
    "config = TeacherConfig(steps=60, batch=4, channels=(8,), patch=1, checkpoint_every=7)\n"
    "train_teacher(Path(sys.argv[1]), images, config)\n"
)
DISTILL = (
    "from fewstep.trainer.sid import distill; from fewstep.trainer.sid_config import SidConfig\n"
    "distill(Bundle.load(sys.argv[1]), 'sid2', SidConfig(steps=2, iterations=40, batch=4, checkpoint_every=7))\n"
)


def _start(code: str, bundle: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", COMMON + code, str(bundle)])


def _run(code: str, bundle: Path) -> None:
    assert _start(code, bundle).wait(timeout=300) == 0


def _kill_when_it_has_saved(code: str, bundle: Path, run: str) -> None:
    saved = checkpoint.checkpoint_path(bundle, run)
    process = _start(code, bundle)
    while not saved.exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saved.exists()


def _weights(bundle: Path, network: str) -> dict[str, torch.Tensor]:
    (path,) = (bundle / "networks" / network).glob("*.safetensors")
    return load_file(path)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_teacher_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.bundle", tmp_path / "killed.bundle"
    _run(TRAIN, whole)
    _kill_when_it_has_saved(TRAIN, killed, "teacher")
    assert not killed.exists()
    _run(TRAIN, killed)
    _same(_weights(whole, "teacher"), _weights(killed, "teacher"))
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".bundle"] == []


def test_a_killed_distillation_ends_with_the_same_weights(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        torch.manual_seed(0)
        image, condition = ImageSpec(channels=1, height=8, width=8), Condition(kind="labels", classes=2)
        denoiser = unet(image, condition, channels=(8,), layers=1, attention=False, patch=1)
        with Draft.create(tmp_path / f"{name}.bundle", image=image, condition=condition) as draft:
            save_network(draft, "teacher", denoiser)
    _run(DISTILL, tmp_path / "whole.bundle")
    _kill_when_it_has_saved(DISTILL, tmp_path / "killed.bundle", "sid2")
    assert "sid2" not in Bundle.load(tmp_path / "killed.bundle").manifest.networks
    _run(DISTILL, tmp_path / "killed.bundle")
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


def test_a_truncated_or_foreign_checkpoint_is_refused(parts: checkpoint.Parts, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path, parts, settings={})
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path, parts, settings={})


def test_a_failed_save_keeps_the_last_checkpoint(
    parts: checkpoint.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.checkpoint"
    checkpoint.save(path, parts, step=3, settings={})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, parts, step=4, settings={})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]

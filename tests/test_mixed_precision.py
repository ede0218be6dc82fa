"""What networks compute in while they learn: measured, said, recorded, and kept when a run goes on elsewhere."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.artifact.records import Distilled, Fitted, Trained
from fewstep.data import Images
from fewstep.evaluation.classifier import ClassifierConfig, classifier
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.evaluation.tau import TauConfig, search_tau
from fewstep.models.mixed_precision import precision_here, times_fp32
from fewstep.sampling.solvers import ddim
from fewstep.trainer import checkpoint
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher
from fewstep.trainer.watch import accelerator_for, scale_as, scaling

CPU = torch.device("cpu")
CONFIG = TeacherConfig(iterations=4, warmup=1, batch=4, channels=(8,), patch=1, checkpoint_every=2)
# oneDNN says that it has bf16 on the second, which it computes as slowly as on the first.
KINDS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np
from fewstep.evaluation.classifier import ClassifierConfig, classifier
from fewstep.system.console import listen
from fewstep.data import Images
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher
listen()
images = Images.of(np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2)
for precision in ("auto", "bf16"):
    config = TeacherConfig(iterations=1, batch=2, channels=(8,), patch=1, mixed_precision=precision)
    train_teacher(Path(f"{precision}.bundle"), images, config)
assert classifier(images, Path("cache"), ClassifierConfig(epochs=1)).trained_in == "no"
"""


def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), np.uint8)
    return Images.of(pixels, np.arange(40) % 2)


def other() -> str:
    """The precision that is slower here."""
    return {"bf16": "no", "no": "bf16"}[precision_here("auto", CPU, "this test").precision]


def precision_of(bundle: Bundle, name: str = "teacher") -> str:
    record = bundle.manifest.records.components[name]
    assert isinstance(record, Trained | Distilled)
    return record.mixed_precision


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the library logs."""
    logger, lines = logging.getLogger("fewstep"), []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, level = Keeps(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def stops(steps: Sequence[int], _what: str) -> Iterator[int]:
    """A track that is stopped after three steps, of which a checkpoint holds two."""
    yield from steps[:3]
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_a_processor_that_is_slow_at_bf16_computes_in_fp32_and_says_so(kind: str, tmp_path: Path) -> None:
    environment = os.environ | KINDS[kind]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "times as long as fp32" in line]
    assert lines[0].startswith("train teacher computes in fp32: here bf16 takes ")
    assert lines[1].startswith("warning: train teacher computes in bf16, which takes ")
    assert lines[2].startswith("train classifier computes in fp32: ")
    assert float(lines[1].split(" takes ")[1].split(" ")[0]) > 1.2
    assert [precision_of(Bundle.load(tmp_path / f"{name}.bundle")) for name in ("auto", "bf16")] == ["no", "bf16"]


def test_the_choice_is_what_was_measured() -> None:
    drawn = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    found = times_fp32.__wrapped__("bf16", "cpu")
    assert 0.01 < found < 100
    assert times_fp32.__wrapped__("no", "cpu") == pytest.approx(1, rel=0.5)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # else what follows would be other networks
    assert torch.get_num_threads() == threads
    assert precision_here("auto", CPU, "this").precision == ("bf16" if times_fp32("bf16", "cpu") < 0.9 else "no")


def test_a_run_goes_on_in_the_precision_it_began_in(said: list[str], tmp_path: Path) -> None:
    slow, out = other(), tmp_path / "a.bundle"
    begun = replace(CONFIG, mixed_precision=slow)
    with pytest.raises(KeyboardInterrupt):
        train_teacher(out, images(), begun, track=stops)
    with pytest.raises(ValueError, match=f"other settings \\(mixed_precision was {slow} and is "):
        train_teacher(out, images(), replace(CONFIG, mixed_precision=other_than(slow)))
    bundle = train_teacher(out, images(), CONFIG)
    whole = train_teacher(tmp_path / "whole.bundle", images(), begun)
    assert precision_of(bundle) == precision_of(whole) == slow
    assert component_digest(bundle.manifest, "teacher") == component_digest(whole.manifest, "teacher")
    config = SidConfig(iterations=4, batch=2, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        distill(bundle, "student", replace(config, mixed_precision=slow), track=stops)
    assert precision_of(distill(bundle, "student", config), "student") == slow
    assert precision_of(distill(Bundle.load(out), "other", config), "other") != slow  # in one process
    assert not [line for line in said if "another kind of machine" in line]
    if slow == "bf16":
        assert [line for line in said if "train teacher goes on, as it began, in bf16, which takes " in line]


def other_than(precision: str) -> str:
    return {"bf16": "no", "no": "bf16"}[precision]


def test_a_run_that_goes_on_on_another_machine_says_so(said: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_teacher(tmp_path / "a.bundle", images(), CONFIG, track=stops)
    path = checkpoint.checkpoint_path(tmp_path / "a.bundle", "teacher") / "run.json"
    about = json.loads(path.read_text())
    about["machine"] |= {"instructions": "AVX512 and more", "processor": "Another"}
    path.write_text(json.dumps(about))
    train_teacher(tmp_path / "a.bundle", images(), CONFIG)
    (line,) = [line for line in said if "another kind of machine" in line]
    assert "(instructions was AVX512 and more and is " in line
    assert "processor was Another and is " in line
    assert "equal up to rounding, not bit for bit" in line


def test_a_run_with_another_number_of_threads_says_so(said: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train_teacher(tmp_path / "a.bundle", images(), CONFIG, track=stops)
    torch.set_num_threads(threads + 1)
    try:
        train_teacher(tmp_path / "a.bundle", images(), CONFIG)
    finally:
        torch.set_num_threads(threads)
    assert [line for line in said if f"(threads was {threads} and is {threads + 1})" in line]


def test_fp16_and_words_that_are_no_precision_are_refused_on_a_processor(tmp_path: Path) -> None:
    sentence = refused("train", "--mixed-precision", "fp16", "--out", tmp_path / "a.bundle")
    assert "computes in fp16 on a GPU alone; on a processor take bf16 or no (fp32)" in sentence
    for made in (lambda: ClassifierConfig(precision="fp32"), lambda: TeacherConfig(mixed_precision="")):
        with pytest.raises(ValueError, match=r"networks compute in bf16, fp16, with no in fp32, or with auto"):
            made()


def test_how_gradients_are_scaled_is_kept() -> None:
    """A scaler of the processor stands for a GPU's, which this needs."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    scaler.update(2.0)
    state = json.loads(json.dumps(scaling(SimpleNamespace(scaler=scaler))))
    fresh = torch.amp.GradScaler("cpu")
    scale_as(SimpleNamespace(scaler=fresh), state)
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.get_scale() == 2.0
    plain, _ = accelerator_for("no", None, saved=Path("none"), what="this")
    assert scaling(plain) == {}
    scale_as(plain, state)


def test_classifiers_are_trained_in_what_is_asked_for_and_their_file_says_it(tmp_path: Path) -> None:
    found = {}
    for precision in ("no", "bf16", "auto"):
        folder, config = tmp_path / precision, ClassifierConfig(epochs=4, batch=8, precision=precision)
        made = classifier(images(), folder, config)
        (path,) = folder.iterdir()
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"precision": made.trained_in}
        assert classifier(images(), folder, config).trained_in == made.trained_in  # from the cache
        found[precision] = load_file(path)["head.weight"]
    assert not torch.equal(found["no"], found["bf16"])
    assert torch.equal(found["auto"], found[other_than(other())])


def test_calibrate_and_compare_take_a_precision_for_their_classifier(digits: Bundle, tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / "images" / str(i % 10)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (28, 28), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / str(i % 10) / f"{i}.png")
    # `other` is what they would not choose by themselves.
    options = ("--data", tmp_path / "images", "--mixed-precision", other(), "--json")
    fewstep("calibrate", digits.root, "--iterations", 1, "--samples", 4, "--batch", 4, "--name", "mine", *options)
    record = Bundle.load(digits.root).manifest.records.plans["mine"]
    assert isinstance(record, Fitted)
    assert record.trained_in[0] == other()
    fewstep("compare", digits.root, "--plan", "sid1", "--seeds", 2, "--seconds", 0, *options)
    assert json.loads((digits.root / "comparison.json").read_text())["trained_in"] == other()
    assert "is that of a classifier of real images" in refused(
        "calibrate", digits.root, "--name", "b", "--mixed-precision", "no"
    )
    sentence = refused("compare", digits.root, *options[:2], "--features", "efficientnet", "--mixed-precision", "no")
    assert "the features efficientnet are not trained here" in sentence


def test_a_search_for_tau_goes_on_in_the_precision_it_began_in(tmp_path: Path) -> None:
    config = TauConfig(replace(CONFIG, iterations=1), taus=(0.9, 1.0), seeds=2, steps=2)
    first = replace(config.teacher, tau=0.9, mixed_precision=other())
    train_teacher(tmp_path / "tau0.9-seed0.bundle", images(), first)
    evaluator = ImageEvaluator(feature_network("classifier", images(), precision="no"), images())
    search_tau(tmp_path, images(), config, ddim, evaluator)
    assert {precision_of(Bundle.load(path)) for path in tmp_path.glob("*.bundle")} == {other()}

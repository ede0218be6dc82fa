"""bench and doctor: figures that fit together, and a fix for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.artifact.bundle import Bundle
from fewstep.runtime import Generator
from fewstep.runtime.bench import measure, save_plot
from fewstep.runtime.doctor import Surroundings, examine, here, try_backends
from fewstep.system.machine import Machine

WITHOUT_GPU, WITH_GPU = Machine(), Machine("89", "NVIDIA L4", 0)
BOTH = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
GPU = {"onnxruntime-gpu": "1.31.1"}


@pytest.mark.parametrize(
    ("around", "verdict", "found", "fix"),
    [
        (Surroundings({}, WITHOUT_GPU, (), {}), "bad", "not installed", 'pip install ".[cpu]"'),
        (Surroundings(BOTH, WITHOUT_GPU, (), {}), "bad", "overwrite each other's files", "pip uninstall -y onnxruntime"),
        (Surroundings({"onnxruntime": "1.31.1"}, WITH_GPU, (), {}), "bad", "no CUDA provider", 'pip install ".[gpu]"'),
        (Surroundings(GPU, WITH_GPU, CUDA, {CUDA[0]: "libcudnn.so.9: no"}), "bad", "libcudnn.so.9", "onnxruntime-gpu[cuda"),
        (Surroundings(GPU | {"tensorrt-rtx": "1"}, WITH_GPU, CUDA, {}), "bad", "engines need it", "pip install cuda-python"),
        (Surroundings(GPU, WITH_GPU, CUDA, {}), "note", "engines in bundles cannot run", '".[rtx]"'),
        (Surroundings(GPU | {"nvidia-a-cu12": "1", "nvidia-b-cu13": "1"}, WITH_GPU, CUDA, {}), "note", "two majors", "keep"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(around: Surroundings, verdict: str, found: str, fix: str) -> None:
    assert any(f.verdict == verdict and found in f.found and fix in f.fix for f in examine(around))


def test_here_nothing_is_wrong_and_each_backend_says_what_it_does(digits: Bundle) -> None:
    assert not [f for f in examine(here(WITHOUT_GPU)) if f.verdict == "bad"]
    verdicts: dict[str, Any] = {f.about: f for f in try_backends(digits)}
    assert verdicts["cpu"].verdict == "ok"
    assert "sid1.fp32, first call" in verdicts["cpu"].found
    assert "no engine of this plan" in verdicts["tensorrt"].found


def test_a_bench_has_a_row_for_every_bucket_and_a_plot(digits: Bundle, tmp_path: Path) -> None:
    rows = measure(Generator(digits, backend="cpu", buckets=(1, 2)), seconds=0.05)
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["calls"] >= 10
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["first_ms"] > 0
        assert row["peak_memory_bytes"] > 10_000_000
    save_plot(tmp_path / "plot.png", {"a": rows, "b": rows[:1]})
    assert Image.open(tmp_path / "plot.png").size == (1200, 675)

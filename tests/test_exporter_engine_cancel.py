"""Progress and the end of builds: through TensorRT's monitor, by Ctrl-C, by a kill. The bundle stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from onnx import helper
from small_graphs import bundle_of, convolution, model

import fewstep.exporter.engine.worker as worker
from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.exporter.engine.build import build_engines
from fewstep.exporter.engine.building import run
from fewstep.exporter.engine.cases import EngineSettings
from fewstep.exporter.engine.worker import Request
from fewstep.system.progress import Report

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")


def _build(stopped: threading.Event, said: list[dict[str, object]]) -> object:
    """Build one convolution with the worker's own monitor, in this process."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(convolution(batch=2).SerializeToString())
    config = builder.create_builder_config()
    config.progress_monitor = worker._monitor(trt, said.append, stopped)
    return builder.build_serialized_network(network, config)


def test_the_monitor_reports_phases_that_only_advance() -> None:
    said: list[dict[str, object]] = []
    assert _build(threading.Event(), said) is not None
    shares = [message["done"] for message in said]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.5
    assert any("Building engine" in str(message["phase"]) for message in said)


def test_tensorrt_stops_when_the_monitor_says_so() -> None:
    stopped = threading.Event()
    said: list[dict[str, object]] = []
    stopped.set()
    assert _build(stopped, said) is None
    assert not [message for message in said if "Optimizing" in str(message["phase"])]


def test_a_build_shows_its_progress(tmp_path: Path) -> None:
    shown: list[tuple[str, float, str]] = []

    @contextmanager
    def meter(what: str) -> Iterator[Report]:
        yield lambda done, phase: shown.append((what, done, phase))

    bundle = bundle_of(tmp_path / "b", convolution(), "fp32", postprocess=model([helper.make_node("Relu", ["x"], ["y"])], []))
    build_engines(bundle, ["small"], settings=EngineSettings(batch=(1,)), meter=meter)
    assert list(dict.fromkeys(what for what, _, _ in shown)) == ["small.rtx", "small.rtx (postprocess)"]
    assert max(done for _, done, _ in shown) > 0.5
    assert all(0 <= done <= 1 and phase for _, done, phase in shown)


def test_a_building_process_that_dies_is_a_sentence(tmp_path: Path) -> None:
    request = Request("no_such_tensorrt", False, "g.onnx", str(tmp_path / "e"), [(1, 1, 1)], [], "fp32", [], False)
    with pytest.raises(ValueError, match=r"ended with code 1 \(.*tensorrt"):
        run(request, lambda _done, _phase: None)


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _cpu_seconds(pid: int) -> float:
    """What a process has computed, which other load does not change."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def command(digits: Bundle) -> subprocess.Popen[str]:
    """`fewstep build` of a graph that takes seconds; its building process is held, early in TensorRT's work, until SIGCONT."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("finds the building process through /proc")
    arguments = [sys.executable, "-m", "fewstep.cli", "build", str(digits.root), "--graph", "sid2.fp16"]
    arguments += ["--batch", "1,2,4,8,16,32"]  # about ten seconds of computing, of which one is let pass
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not _children(process.pid):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (builder,) = _children(process.pid)
    while _cpu_seconds(builder) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(builder, signal.SIGSTOP)
    return process


def _untouched(bundle: Bundle, before: bytes) -> None:
    assert (bundle.root / MANIFEST).read_bytes() == before
    loaded = Bundle.load(bundle.root)
    loaded.verify()
    assert not loaded.manifest.engines


def test_ctrl_c_ends_a_build_within_seconds(digits: Bundle, command: subprocess.Popen[str]) -> None:
    before = (digits.root / MANIFEST).read_bytes()
    (builder,) = _children(command.pid)
    os.kill(command.pid, signal.SIGINT)
    os.kill(builder, signal.SIGCONT)
    _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert said.strip().splitlines()[-1].startswith("fewstep: stopped; bundles are as they were")
    assert "Traceback" not in said
    assert not _running(builder)
    _untouched(digits, before)
    assert [p.name for p in digits.root.parent.iterdir()] == ["digits.bundle"]


def test_a_killed_build_leaves_the_bundle_whole_and_nothing_running(digits: Bundle, command: subprocess.Popen[str]) -> None:
    before = (digits.root / MANIFEST).read_bytes()
    (builder,) = _children(command.pid)
    command.kill()
    os.kill(builder, signal.SIGCONT)
    command.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while _running(builder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(builder)
    _untouched(digits, before)

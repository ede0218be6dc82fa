"""Engines in the runtime: the real driving code, over a GPU that the CPU plays (stand_in_gpu says how far that goes)."""

from __future__ import annotations

import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in_gpu import Gpu, tensorrt

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import EngineEntry, EngineKey
from fewstep.backends.tensorrt import EngineProgram
from fewstep.runtime import Generator, selection
from fewstep.system.machine import Machine

PROFILES = [(1, 1, 1), (2, 8, 16)]


def install(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, version: str = "1.7.1.116") -> None:
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = gpu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt(gpu, version))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: SimpleNamespace())
    monkeypatch.setattr(selection, "this_machine", lambda: Machine("89", "NVIDIA L4", 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    install(monkeypatch, made)
    return made


@pytest.fixture
def with_engine(digits: Bundle) -> Bundle:
    """The digits with an "engine" of their one-step generator: its graph's bytes."""
    graph = digits.manifest.graphs["sid1.fp32"]
    key = EngineKey(
        graph_sha256=digits.manifest.files[graph.file].sha256,
        postprocess_sha256=None,
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        targets=["89"],
        gpu=None,
        precision="fp32",
        profiles=PROFILES,
    )
    with digits.edit() as draft:
        draft.new("engines/sid1.fp32.rtx").write_bytes(digits.file(graph.file).read_bytes())
        draft.manifest.engines["sid1.fp32.rtx"] = EngineEntry(
            file="engines/sid1.fp32.rtx", graph="sid1.fp32", key=key, layers={}, inspected=False, seconds=0
        )
    return Bundle.load(digits.root)


def test_an_engine_is_the_first_rung_and_gives_the_graphs_images(with_engine: Bundle, gpu: Gpu) -> None:
    generator, graph = Generator(with_engine, precision="fp32"), Generator(with_engine, precision="fp32", backend="cpu")
    assert (generator.backend, generator.reason) == ("tensorrt", "the fastest there is")
    for batch in (1, 3, 8, 40):
        labels = [i % 10 for i in range(batch)]
        images = generator(labels=labels, seeds=range(batch))
        assert np.abs(images.astype(int) - graph(labels=labels, seeds=range(batch))).max() <= 1


def test_buffers_stay_where_they_are_and_later_runs_launch_one_captured_graph(with_engine: Bundle, gpu: Gpu) -> None:
    generator = Generator(with_engine, precision="fp32", buckets=(1, 4))
    generator.warm_up()
    allocated, captures = gpu.calls.count("cudaMallocHost"), gpu.calls.count("cudaStreamBeginCapture")
    assert captures == 2  # one for every bucket
    for seed in range(20):
        generator(labels=[seed % 10], seeds=[seed])
        generator(labels=[1, 2, 3], seeds=[seed, 1, 2])
    assert gpu.calls.count("cudaMallocHost") == allocated
    assert gpu.calls.count("cudaStreamBeginCapture") == captures
    assert gpu.calls.count("cudaGraphLaunch") == 40


def test_what_cannot_be_captured_is_launched_plainly_and_says_so(with_engine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(capturable=False)
    install(monkeypatch, gpu)
    generator = Generator(with_engine, precision="fp32")
    expected = Generator(with_engine, precision="fp32", backend="cpu")(labels=[3], seeds=[1])
    for _ in range(3):
        np.testing.assert_array_equal(generator(labels=[3], seeds=[1]), expected)
    assert "cudaGraphLaunch" not in gpu.calls
    with generator._pool.borrow(1) as binding:
        assert "plain, for it cannot be captured (cudaStreamEndCapture: cudaErrorStreamCaptureUnsupported)" in binding.launch


def test_memory_is_given_back(with_engine: Bundle, gpu: Gpu) -> None:
    generator = Generator(with_engine, precision="fp32")
    generator(labels=[3], seeds=[1])
    assert gpu.memory
    del generator
    gc.collect()
    assert not gpu.memory


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"version": "1.6"},
            "it was built by tensorrt_rtx 1.6, here is 1.7.1.116; rebuild it with: fewstep build digits.bundle",
        ),
        ({"targets": ["120"]}, "it was built for SM 120, this GPU is SM 89; rebuild it with: fewstep build"),
        ({"gpu": "NVIDIA T4"}, "it was built on NVIDIA T4, this is NVIDIA L4; rebuild it with: fewstep build"),
        ({"graph_sha256": "0" * 64}, "its graph was exported again since; rebuild it with: fewstep build"),
    ],
)
def test_an_engine_of_another_place_falls_back_to_the_graph_and_says_how_to_rebuild(
    changes: dict[str, Any], reason: str, with_engine: Bundle, gpu: Gpu
) -> None:
    with with_engine.edit() as draft:
        entry = draft.manifest.engines["sid1.fp32.rtx"]
        entry.key = entry.key.model_copy(update=changes)
    generator = Generator.open(with_engine.root)
    assert generator.backend == "cpu"
    assert reason in generator.reason
    with pytest.raises(ValueError, match="backend 'tensorrt' cannot run 'sid1' here"):
        Generator.open(with_engine.root, backend="tensorrt")


def test_a_corrupt_engine_falls_back_to_the_graph(with_engine: Bundle, gpu: Gpu) -> None:
    with with_engine.edit() as draft:
        draft.new("engines/sid1.fp32.rtx").write_bytes(b"not an engine")
    generator = Generator.open(with_engine.root)
    assert generator.backend == "cpu"
    assert "tensorrt_rtx 1.7.1.116 refuses the engine sid1.fp32.rtx; rebuild it" in generator.reason
    path = with_engine.root / "engines/sid1.fp32.rtx"
    path.unlink()
    path.write_bytes(b"altered later")
    generator = Generator.open(with_engine.root)
    assert "does not match its sha256" in generator.reason
    assert generator(labels=[3], seeds=[0]).shape == (1, 28, 28, 1)


def test_a_batch_without_a_profile_is_refused_in_words(with_engine: Bundle, gpu: Gpu) -> None:
    content = with_engine.file("engines/sid1.fp32.rtx").read_bytes()
    program = EngineProgram(content, "sid1", flavour="tensorrt_rtx", profiles=PROFILES)
    with pytest.raises(ValueError, match=r"no profile for a batch of 17; it has: \[\(1, 1, 1\), \(2, 8, 16\)\]"):
        program.bind(17)


def test_without_cuda_python_the_ladder_says_what_is_missing(
    with_engine: Bundle, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "cuda" in Generator.open(with_engine.root).reason


def test_buckets_are_those_the_engine_was_built_for(with_engine: Bundle, gpu: Gpu) -> None:
    assert Generator(with_engine, precision="fp32").buckets == (1, 2, 4, 8, 16)
    with pytest.raises(ValueError, match=r"sid1.fp32.rtx takes none of the batch sizes \[64\]"):
        Generator(with_engine, precision="fp32", buckets=(64,))

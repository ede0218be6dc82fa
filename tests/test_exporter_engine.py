"""Engines: built for real by TensorRT-RTX, kept by their key, refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto as Type
from small_graphs import bundle_of, convolution, foreign, loop, model, quantized
from test_cli import fewstep, refused

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.artifact.manifest import EngineKey
from fewstep.exporter.engine.build import Job, Miss, build_engines, prepare
from fewstep.exporter.engine.cases import EngineSettings
from fewstep.exporter.engine.flavour import Flavour
from fewstep.system.machine import Machine, this_machine

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
SMALL = EngineSettings(targets=("89",), batch=(4,))


def rebuild(bundle: Bundle, settings: EngineSettings = SMALL, graph: str = "small") -> tuple[Bundle, Job]:
    (job,) = build_engines(bundle, [graph], settings=settings)
    return Bundle.load(bundle.root), job


@pytest.mark.parametrize("graph", ["sid1.fp32", "sid1.fp16"])
def test_an_engine_is_built_in_the_precision_of_its_graph(digits: Bundle, graph: str) -> None:
    built, _ = rebuild(digits, SMALL, graph)
    engine = built.manifest.engines[f"{graph}.rtx"]
    precision = graph.split(".")[1]
    entry = digits.manifest.graphs[graph]
    convolutions = sum(n.op_type == "Conv" for n in onnx.load(digits.file(entry.file)).graph.node)
    assert set(engine.layers) == {precision}
    assert engine.layers[precision] >= convolutions > 20
    assert engine.key.graph_sha256 == digits.manifest.files[entry.file].sha256
    assert (engine.key.flavour, engine.key.targets, engine.key.gpu) == ("tensorrt_rtx", ["89"], None)
    assert built.file(engine.file).stat().st_size > 1_000_000
    assert this_machine().sm or not engine.inspected
    built.verify()


@pytest.mark.parametrize(
    ("graph", "precision", "layers"),
    [
        (convolution(Type.BFLOAT16), "bf16", {"bf16": 1}),
        (quantized(), "int8", {"int8": 1}),
        (quantized(base=Type.FLOAT16, product=True), "int8-fp16", {"int8": 1, "fp16": 1}),
        (quantized(Type.FLOAT8E4M3FN, base=Type.FLOAT16), "fp8", {"fp8": 1}),
        (loop(), "fp16", {"fp16": 1}),
    ],
)
def test_every_precision_and_loops_build(
    graph: onnx.ModelProto, precision: str, layers: dict[str, int], tmp_path: Path
) -> None:
    built, _ = rebuild(bundle_of(tmp_path / "b", graph, precision))
    assert built.manifest.engines["small.rtx"].layers == layers


def test_a_graph_of_one_batch_builds_for_that_batch(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(batch=2), "fp32")
    with pytest.raises(ValueError, match="has a fixed batch of 2; build it with --batch 2"):
        rebuild(bundle)
    built, _ = rebuild(bundle, replace(SMALL, batch=(2,)))
    assert built.manifest.engines["small.rtx"].layers == {"fp32": 1}


def test_external_data_is_read_and_part_of_the_key(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(), "fp32", data="graphs/small.data")
    built, _ = rebuild(bundle)
    inline, _ = rebuild(bundle_of(tmp_path / "inline", convolution(), "fp32"))
    key = built.manifest.engines["small.rtx"].key
    assert key.data_sha256 == [bundle.manifest.files["graphs/small.data"].sha256]
    files = [b.file(b.manifest.engines["small.rtx"].file).read_bytes() for b in (built, inline)]
    assert files[0] == files[1]
    (built.root / "graphs/small.data").write_bytes(b"0" * bundle.manifest.files["graphs/small.data"].bytes)
    with pytest.raises(ValueError, match="does not match its sha256"):
        rebuild(Bundle.load(built.root))


def test_the_step_layout_gets_both_engines(tmp_path: Path) -> None:
    postprocess = model([onnx.helper.make_node("Relu", ["x"], ["y"])], [])
    built, _ = rebuild(bundle_of(tmp_path / "b", convolution(), "fp32", postprocess=postprocess))
    engine = built.manifest.engines["small.rtx"]
    assert engine.paths == ["engines/small.rtx.engine", "engines/small.rtx.postprocess.engine"]
    assert engine.key.postprocess_sha256 == built.manifest.files["graphs/small.postprocess.onnx"].sha256
    built.verify()


def test_inputs_without_a_dynamic_batch_are_left_alone(tmp_path: Path) -> None:
    """scales (4,) and guidance_scale () of the step layout next to x (batch, C, H, W)."""
    shapes = {"scales": [4], "guidance_scale": []}
    graph = convolution(inputs=[onnx.helper.make_tensor_value_info(n, Type.FLOAT, s) for n, s in shapes.items()])
    graph.graph.node[-1].input[0] = "scaled"
    nodes = [
        onnx.helper.make_node("ReduceSum", ["scales"], ["sum"], keepdims=0),
        onnx.helper.make_node("Mul", ["out", "sum_low"], ["product"]),
        onnx.helper.make_node("Add", ["product", "guidance_scale"], ["scaled"]),
    ]
    nodes.insert(1, onnx.helper.make_node("Identity", ["sum"], ["sum_low"]))
    for i, node in enumerate(nodes):
        graph.graph.node.insert(2 + i, node)
    built, _ = rebuild(bundle_of(tmp_path / "b", graph, "fp32"), replace(SMALL, batch=(1, 8)))
    assert built.manifest.engines["small.rtx"].key.profiles == [(1, 1, 1), (2, 8, 8)]


def test_an_engine_with_an_equal_key_is_kept_and_a_miss_says_what_differs(tmp_path: Path) -> None:
    bundle, first = rebuild(bundle_of(tmp_path / "b", convolution(), "fp32"))
    assert (first.old, first.misses, first.up_to_date) == (None, [], False)
    engine = bundle.root / bundle.manifest.engines["small.rtx"].file
    stamp = engine.stat().st_mtime_ns
    bundle, second = rebuild(bundle)
    assert second.up_to_date
    assert engine.stat().st_mtime_ns == stamp
    bundle, third = rebuild(bundle, replace(SMALL, targets=("86", "120"), workspace_bytes=1 << 30))
    assert third.misses == [
        Miss("targets", ["89"], ["86", "120"]),
        Miss("workspace_bytes", None, 1 << 30),
    ]
    assert rebuild(bundle, replace(SMALL, targets=("86", "120"), workspace_bytes=1 << 30))[1].up_to_date


def test_every_part_of_the_key_that_changes_is_a_miss(tmp_path: Path) -> None:
    bundle, job = rebuild(bundle_of(tmp_path / "b", convolution(), "fp32"))
    other = EngineKey(
        graph_sha256="0",
        data_sha256=["1"],
        postprocess_sha256="2",
        flavour="tensorrt",
        version="11.3.0",
        targets=["90"],
        gpu="NVIDIA H100",
        precision="fp16",
        profiles=[(1, 2, 2)],
        workspace_bytes=1,
        level=5,
        flags=["refit"],
    )
    job = replace(job, key=other, old=bundle.manifest.engines["small.rtx"])
    assert [miss.part for miss in job.misses] == list(EngineKey.model_fields)


def test_a_native_engine_depends_on_the_gpu_that_builds_it(tmp_path: Path) -> None:
    """The key alone: native TensorRT cannot be installed where this was written."""
    bundle = bundle_of(tmp_path / "b", convolution(), "fp32")
    jetson, orin = Flavour("tensorrt", "10.3.0"), Machine("87", "Orin", 8 << 30)
    (job,) = prepare(bundle, ["small"], EngineSettings(level=4, flags=("weight-streaming", "refit")), jetson, orin)
    assert (job.name, job.key.targets, job.key.gpu, job.key.level) == ("small.tensorrt.sm87", ["87"], "Orin", 4)
    assert job.key.flags == ["refit", "weight-streaming"]
    assert job.findings[0].rule == "step-layout"


def test_the_key_finds_the_profile_of_a_batch(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(), "fp32")
    (job,) = prepare(bundle, ["small"], EngineSettings(batch=(1, 4, 16)), Flavour("tensorrt_rtx", "1.7"), Machine())
    assert [job.key.profile(batch) for batch in (1, 2, 4, 5, 16, 17)] == [0, 1, 1, 2, 2, None]


def test_a_graph_that_lies_about_its_precision_gets_no_engine(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(), "fp16")
    before = (bundle.root / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match=r"refuses the graph 'small': it was exported as fp16.*first 'conv' in fp32"):
        rebuild(bundle)
    assert (bundle.root / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    excluded, _ = rebuild(bundle_of(tmp_path / "excluded", convolution(), "fp16", excluded=["conv"]))
    assert excluded.manifest.engines["small.rtx"].layers == {"fp32": 1}


def test_a_graph_tensorrt_cannot_parse_is_refused_in_words(tmp_path: Path) -> None:
    unknown = model([onnx.helper.make_node("Nonsense", ["x"], ["y"])], [])
    with pytest.raises(ValueError, match=r"TensorRT-RTX .* refuses the graph 'small': In node 0 .*Nonsense"):
        rebuild(bundle_of(tmp_path / "b", unknown, "fp32"))


def test_the_graph_that_ends_in_images_is_evaluated_too(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(), "fp32", postprocess=foreign())
    with pytest.raises(ValueError, match="outside the ONNX standard"):
        rebuild(bundle)


def test_a_file_that_is_no_graph_is_refused_in_words(digits: Bundle) -> None:
    with digits.edit() as draft:
        draft.new(digits.manifest.graphs["sid1.fp32"].file).write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"'sid1\.fp32' is not a readable ONNX file"):
        rebuild(Bundle.load(digits.root), SMALL, "sid1.fp32")


def test_an_altered_engine_is_not_called_up_to_date(tmp_path: Path) -> None:
    bundle, _ = rebuild(bundle_of(tmp_path / "b", convolution(), "fp32"))
    path = bundle.root / bundle.manifest.engines["small.rtx"].file
    path.write_bytes(b"0" * path.stat().st_size)
    with pytest.raises(ValueError, match="does not match its sha256"):
        rebuild(Bundle.load(bundle.root))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "90"], "does not build for SM 90"),
        (["--batch", "4,2,8"], "from 1 that increase"),
        (["--batch", "four"], "whole numbers with commas"),
        (["--graph", "sid9.fp32"], "no graph 'sid9.fp32'"),
        (["--flavour", "trt"], "tensorrt_rtx or tensorrt, got 'trt'"),
        (["--flag", "fast"], "a flag is one of refit, strip-plan"),
        (["--level", "3"], "the same engine at every optimisation level"),
        (["--level", "7"], "levels are 0 to 5, got 7"),
        (["--timing-cache", "t.cache"], "would be ignored"),
        (["--workspace-mb", "0"], "at least 1 byte"),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments: list[str], sentence: str, digits: Bundle) -> None:
    assert sentence in refused("build", digits.root, *arguments)
    assert not Bundle.load(digits.root).manifest.engines


def test_the_command_explains_builds_and_keeps(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", convolution(), "fp32")
    explained = fewstep("build", bundle.root, "--explain", "--target", 75, "--target", 90, "--json")
    engine = json.loads(explained.stdout)["engines"]["small.rtx"]
    assert (engine["status"], engine["findings"][0]["rule"]) == ("to build", "unknown-target")
    assert "stops  unknown-target: " in explained.stderr
    assert not Bundle.load(bundle.root).manifest.engines
    statuses = []
    for target in ("89", "89", "120"):
        done = fewstep("build", bundle.root, "--batch", 2, "--target", target, "--json")
        engine = json.loads(done.stdout)["engines"]["small.rtx"]
        statuses.append(engine["status"])
    assert statuses == ["built", "up to date", "built"]
    assert engine["misses"] == [{"part": "targets", "old": ["89"], "new": ["120"]}]
    assert engine["key"]["profiles"] == [[1, 2, 2]]
    assert "targets was ['89'], is ['120']" in done.stderr

"""The table that explains before a build: every row fires where it should, and TensorRT-RTX confirms what it can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto as Type
from small_graphs import bundle_of, convolution, foreign, loop, quantized

from fewstep.artifact.spec import Precision
from fewstep.exporter.engine.building import run
from fewstep.exporter.engine.cases import EngineCase, EngineSettings
from fewstep.exporter.engine.explain import ROWS, explain
from fewstep.exporter.engine.facts import GraphFacts, graph_facts
from fewstep.exporter.engine.flavour import Flavour, choose, installed
from fewstep.exporter.engine.worker import Request
from fewstep.runtime.buckets import BUCKETS
from fewstep.runtime.deploy.triton import TritonSettings as Deployment
from fewstep.system.machine import Machine, this_machine

RTX = Flavour("tensorrt_rtx", "1.7.1", ("75", "80", "86", "89", "120", "121"))
NATIVE = Flavour("tensorrt", "11.3.0")
JETSON = Flavour("tensorrt", "10.3.0")
ORIN = Machine("87", "Orin", 8 << 30)
ADA = Machine("89", "NVIDIA GeForce RTX 4090", 64 << 30)
ONE = EngineSettings(targets=("89",), batch=(4,))


def case(
    flavour: Flavour = RTX,
    settings: EngineSettings = ONE,
    machine: Machine | None = None,
    precision: Precision = "fp16",
    **facts: object,
) -> EngineCase:
    return EngineCase(flavour, settings, GraphFacts(name="g", precision=precision, **facts), machine or Machine())  # type: ignore[arg-type]


def build_for(*targets: str, **more: object) -> EngineSettings:
    return EngineSettings(targets=targets, batch=(4,), **more)  # type: ignore[arg-type]


# rule -> a case in which it speaks, and the part of its sentence that carries the value
SPEAKS: dict[str, tuple[EngineCase, str]] = {
    "not-installed": (case(Flavour("tensorrt", None), build_for(), ADA), r"\.\[tensorrt\]"),
    "too-old": (case(Flavour("tensorrt", "8.6.1"), build_for(), ORIN), "TensorRT 8.6.1 is older than 10"),
    "targets-on-native": (case(NATIVE, build_for("86", "89"), ADA), "not for SM 86, 89"),
    "native-without-gpu": (case(JETSON, build_for()), "there is none here"),
    "unknown-target": (case(RTX, build_for("90", "89")), "does not build for SM 90;"),
    "gpu-not-among-targets": (case(RTX, build_for("86"), ADA), "the GPU here is SM 89"),
    "default-targets": (case(RTX, build_for()), "not for Turing"),
    "fp8-target": (case(RTX, build_for("75", "86", "89"), precision="fp8"), "SM 75, SM 86 cannot"),
    "fp8-default-targets": (case(RTX, build_for(), precision="fp8"), "SM 89 and newer only"),
    "bf16-target": (case(RTX, build_for("75"), precision="bf16"), "SM 75 cannot"),
    "needs-gpu": (case(RTX, build_for("89", flags=("refit", "weight-streaming"))), "with refit where"),
    "no-lean-runtime": (case(RTX, build_for("89", flags=("version-compatible",))), "no lean runtime"),
    "timing-cache": (case(RTX, build_for("89", timing_cache=Path("t.cache"))), "would be ignored"),
    "level": (case(RTX, build_for("89", level=0)), "level 0 would be ignored"),
    "small-workspace": (case(RTX, build_for("89", workspace_bytes=1 << 20)), "1 MB of workspace"),
    "bucket-size": (case(RTX, EngineSettings(targets=("89",), batch=(1, 4, 16))), "each of 3 batch buckets"),
    "fixed-batch": (case(fixed_batch=2), "--batch 2"),
    "dynamic-size": (case(dynamic=("embeddings: length",)), "embeddings: length"),
    "check-batch": (case(golden_batch=8), "holds 8 images"),
    "opset-altered": (case(opset=21), "has opset 21, the manifest says 20"),
    "opset-unknown": (case(opset=99, declared_opset=99), "opset 99, newer than any"),
    "opset-new": (case(JETSON, build_for(), ORIN, opset=21, declared_opset=21), "opset 21, newer than TensorRT 10.3.0"),
    "foreign-operators": (case(foreign=("com.microsoft.QuickGelu",)), "com.microsoft.QuickGelu"),
    "asymmetric": (case(precision="int8", asymmetric=("q7",)), "the zero point of q7"),
    "quantized-bias": (case(precision="int8", wide_integers=("bias",)), "export it as int8-fp16"),
    "e5m2": (case(precision="fp8", e5m2=("q7",)), "e4m3 alone"),
    "open-loop": (case(open_loops=("l",), loops=("l",)), "without a condition input"),
    "loop": (case(loops=("l",)), "no kernel is fused across steps"),
    "step-layout": (case(layout="step"), "two engines"),
    "stray-data": (case(stray_data=("../../secret",)), r"\.\./\.\./secret"),
    "protobuf-limit": (case(graph_bytes=3 << 30), "3.0 GiB"),
    "memory": (case(NATIVE, build_for(), ORIN, graph_bytes=1 << 20, data_bytes=3 << 30), "takes about 9.0 GiB"),
}


def rules(given: EngineCase) -> set[str]:
    return {finding.rule for finding in explain(given)}


def test_every_row_has_a_case() -> None:
    assert set(SPEAKS) == {row.rule for row in ROWS}
    assert len({row.rule for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("rule", SPEAKS)
def test_a_row_speaks_with_reason_and_way_out(rule: str) -> None:
    import re

    given, part = SPEAKS[rule]
    (finding,) = (f for f in explain(given) if f.rule == rule)
    assert finding.severity == next(row.severity for row in ROWS if row.rule == rule)
    assert re.search(part, finding.sentence), finding.sentence
    assert not re.search(r"[{}\n]", finding.sentence)


def test_what_stops_comes_first() -> None:
    severities = [f.severity for f in explain(case(RTX, build_for("75", "90"), precision="fp8", loops=("l",)))]
    assert severities == ["stops", "stops", "note"]


@pytest.mark.parametrize(
    "given",
    [
        case(),
        case(RTX, build_for("120"), Machine("120"), precision="fp8"),
        case(RTX, build_for("80"), precision="bf16"),
        case(RTX, build_for("75"), precision="int8-fp16"),
        case(NATIVE, build_for(level=5, timing_cache=Path("t"), flags=("refit", "strip-plan", "version-compatible")), ADA),
        case(JETSON, build_for(), ORIN, precision="bf16"),
        case(RTX, build_for("89", flags=("refit",)), ADA),
        case(fixed_batch=4, golden_batch=4),
        case(graph_bytes=(2 << 30) - 1),
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(given: EngineCase) -> None:
    assert not explain(given)


def test_fp8_on_a_jetson_orin_stops() -> None:
    assert rules(case(JETSON, build_for(), ORIN, precision="fp8")) == {"fp8-target"}


def test_only_tensorrt_10_must_be_asked_for_strong_typing() -> None:
    assert [f.asks_for_strong_typing for f in (JETSON, NATIVE, RTX)] == [True, False, False]


@pytest.mark.parametrize("batch", [(), (0, 4), (4, 4), (4, 1)])
def test_batches_that_do_not_increase_are_refused(batch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="whole numbers from 1 that increase"):
        EngineSettings(batch=batch)


@pytest.mark.parametrize(
    ("settings", "message"), [({"workspace_bytes": 0}, "at least 1 byte"), ({"level": 6}, "0 to 5, got 6")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineSettings(**settings)  # type: ignore[arg-type]


def test_only_native_engines_get_a_profile_for_batch_1_by_default() -> None:
    assert EngineSettings(batch=RTX.batch).profiles == [(1, 32, 32)]
    assert EngineSettings(batch=JETSON.batch).profiles == [(1, 1, 1), (2, 32, 32)]


def test_engines_take_every_batch_that_the_runtime_and_triton_make_by_default() -> None:
    for flavour in (RTX, JETSON):
        assert max(largest for *_, largest in EngineSettings(batch=flavour.batch).profiles) >= max(
            *BUCKETS, Deployment().max_batch
        )


def test_each_batch_gets_the_range_above_the_one_before() -> None:
    assert EngineSettings(batch=(1, 4, 16)).profiles == [(1, 1, 1), (2, 4, 4), (5, 16, 16)]
    assert EngineSettings(batch=(8,)).profiles == [(1, 8, 8)]


def test_the_flavour_that_is_installed_is_chosen_and_an_unknown_one_refused() -> None:
    pytest.importorskip("tensorrt_rtx")
    flavour, reason = choose(None, Machine())
    assert flavour.name == "tensorrt_rtx"
    assert {"75", "89", "120"} <= set(flavour.targets)
    assert reason == "it is installed and needs no GPU"
    with pytest.raises(ValueError, match="tensorrt_rtx or tensorrt, got 'trt'"):
        choose("trt", Machine())  # type: ignore[arg-type]


def test_this_machine_has_memory_and_a_gpu_only_with_a_driver() -> None:
    machine = this_machine()
    assert machine.memory_bytes > 1 << 28
    assert (machine.sm is None) == (machine.gpu is None)


FACTS: dict[str, tuple[Callable[[], onnx.ModelProto], Precision, dict[str, object]]] = {
    "asymmetric": (lambda: quantized(zero=3), "int8", {"asymmetric": ("q", "dq")}),
    "bias": (lambda: quantized(bias=True), "int8", {"wide_integers": ("bdq",)}),
    "e5m2": (lambda: quantized(Type.FLOAT8E5M2), "fp8", {"e5m2": ("q", "dq", "wq", "wdq")}),
    "open loop": (lambda: loop(condition=False), "fp16", {"open_loops": ("loop",), "loops": ("loop",)}),
    "foreign": (foreign, "fp32", {"foreign": ("com.microsoft.QuickGelu",)}),
    "fixed": (lambda: convolution(batch=2), "fp32", {"fixed_batch": 2}),
    "opset": (lambda: convolution(opset=21), "fp32", {"opset": 21, "declared_opset": 20}),
    "plain": (lambda: quantized(Type.FLOAT8E4M3FN), "fp8", {"asymmetric": (), "e5m2": (), "fixed_batch": None, "dynamic": ()}),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_read_from_the_graph(name: str, tmp_path: Path) -> None:
    make, precision, expected = FACTS[name]
    facts = graph_facts(bundle_of(tmp_path / "b", make(), precision), "small")
    assert {key: getattr(facts, key) for key in expected} == expected


def test_a_weight_file_the_manifest_does_not_know_is_noticed(tmp_path: Path) -> None:
    graph = convolution()
    onnx.save(graph, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    graph = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    facts = graph_facts(bundle_of(tmp_path / "b", graph, "fp32"), "small")
    assert facts.stray_data == ("g.data",)


def refusal(path: Path, graph: onnx.ModelProto, **more: object) -> str:
    """TensorRT-RTX's own answer to a graph, past the table; "" when it builds."""
    pytest.importorskip("tensorrt_rtx")
    onnx.save(graph, path / "g.onnx")
    fields = {"profiles": [(1, 4, 4)], "targets": [], "precision": None, "excluded": [], "inspect": False} | more
    request = Request("tensorrt_rtx", False, str(path / "g.onnx"), str(path / "engine"), **fields)  # type: ignore[arg-type]
    try:
        run(request, lambda _done, _phase: None)
    except ValueError as error:
        return str(error)
    assert (path / "engine").stat().st_size > 10_000
    return ""


@pytest.mark.parametrize(
    ("graph", "more", "reason"),
    [
        (lambda: quantized(Type.FLOAT8E4M3FN), {"targets": ["86"]}, "sm86.*fp8"),
        (lambda: quantized(Type.FLOAT8E4M3FN), {"targets": ["89"]}, ""),
        (lambda: quantized(Type.FLOAT8E4M3FN), {}, ""),
        (lambda: convolution(Type.BFLOAT16), {"targets": ["75"]}, "sm75.*b16"),
        (lambda: convolution(Type.BFLOAT16), {"targets": ["80", "120"]}, ""),
        (convolution, {"flags": ("refit",)}, "CUDA"),
        (convolution, {"flags": ("strip-plan",)}, "CUDA"),
        (convolution, {"flags": ("weight-streaming",)}, ""),
        (convolution, {"flags": ("version-compatible",)}, "libnvinfer_lean"),
        (convolution, {"workspace_bytes": 1 << 20}, "workspace"),
        (convolution, {"targets": ["90"]}, "SM90"),
        (lambda: quantized(zero=3), {}, "[Nn]on-zero zero point"),
        (lambda: quantized(bias=True), {}, "Invalid Node"),
        (lambda: quantized(Type.FLOAT8E5M2), {}, "initializer"),
        (lambda: loop(condition=False), {}, "input was not registered"),
        (foreign, {}, "[Pp]lugin"),
    ],
)
def test_tensorrt_rtx_confirms_the_table(
    graph: Callable[[], onnx.ModelProto], more: dict[str, object], reason: str, tmp_path: Path
) -> None:
    import re

    if more.get("flags") and this_machine().sm:
        pytest.skip("these rules are about machines without a GPU")
    said = refusal(tmp_path, graph(), **more)
    assert re.search(reason, said) if reason else not said, said


def test_the_optimisation_level_changes_nothing_in_tensorrt_rtx() -> None:
    """Why the table refuses one there. TensorRT's own API: our path does not pass a level to this flavour."""
    trt = pytest.importorskip("tensorrt_rtx")
    engines = []
    for level in (0, 5):
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse(convolution(batch=2).SerializeToString())
        config = builder.create_builder_config()
        config.builder_optimization_level = level
        engines.append(bytes(builder.build_serialized_network(network, config)))
    assert engines[0] == engines[1]


def test_the_installed_flavour_knows_its_targets() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert "90" not in installed("tensorrt_rtx").targets

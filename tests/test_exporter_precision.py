"""Eight bits and excluded layers, read from the graph, run, and built."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import Manifest
from fewstep.artifact.ranges import Ranges
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.artifact.spec import Precision
from fewstep.calibration.inputs import Drawn
from fewstep.calibration.ranges import collect, rounded_sample
from fewstep.exporter.engine.build import build_engines
from fewstep.exporter.engine.cases import EngineSettings
from fewstep.exporter.export import export_graphs
from fewstep.exporter.graph.layouts import unroll
from fewstep.exporter.graph.loop import loop
from fewstep.exporter.graph.network import trace_network, with_weights
from fewstep.exporter.graph.precision import LayerPrecision
from fewstep.exporter.parity import check_graphs
from fewstep.models.denoiser import Denoiser, load_network, unet
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

IMAGE, LABELS = ImageOutput(channels=1, height=8, width=8), (LabelInput(classes=3),)
MANIFEST = Manifest(name="small", signature=Signature(inputs=LABELS, output=IMAGE), state=IMAGE.state)
PLAN = ddim(karras(3, 0.1, 20.0))
NAMES = ("fp32", "fp16", "int8", "int8-fp16", "fp8")


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return unet(IMAGE.state, LABELS, channels=(16,), layers=1, attention=True, patch=1).eval()


@pytest.fixture(scope="module")
def traces(denoiser: Denoiser) -> dict[str, Any]:
    return {p: with_weights(trace_network(denoiser, MANIFEST, p), denoiser, MANIFEST) for p in ("fp32", "fp16")}


@pytest.fixture(scope="module")
def inputs() -> Drawn:
    labels = torch.arange(16) % 3
    noise = torch.randn(16, PLAN.draws, *IMAGE.shape, generator=torch.Generator().manual_seed(1))
    return Drawn(noise, (labels,), (torch.full_like(labels, 3),))


@pytest.fixture(scope="module")
def ranges(denoiser: Denoiser, inputs: Drawn) -> Ranges:
    return collect(denoiser, PLAN, inputs, name="ddim3")


def _layers(precision: str, ranges: Ranges, excluded: tuple[str, ...] = ()) -> LayerPrecision:
    if not precision.startswith(("int8", "fp8")):
        return LayerPrecision(frozenset(excluded))
    return LayerPrecision(frozenset(excluded), "fp8" if precision == "fp8" else "int8", ranges, for_cpu=precision == "int8")


def _model(
    traces: dict[str, Any], precision: str, ranges: Ranges, excluded: tuple[str, ...] = (), layout: Any = unroll
) -> ir.Model:
    network = traces["fp32" if precision in ("fp32", "int8") else "fp16"]
    return layout(network, PLAN, IMAGE, layers=_layers(precision, ranges, excluded))


def _sample(model: ir.Model, inputs: Drawn, path: Path, *, optimise: bool = True) -> np.ndarray:
    ir.save(model, path)
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["sample"], {"noise": inputs.noise.numpy(), "labels": inputs.condition[0].numpy()})[0]


@pytest.mark.parametrize("precision", ["int8", "int8-fp16", "fp8"])
def test_the_graph_rounds_as_calibration_foresaw(
    precision: Precision, denoiser: Denoiser, traces: dict[str, Any], ranges: Ranges, inputs: Drawn, tmp_path: Path
) -> None:
    """One layer: the same image. All of them: an error of the same size, for rounding is chaotic."""
    exact = rounded_sample(denoiser, PLAN, inputs, ranges, [], precision).numpy()
    for names in (["conv_out"], list(ranges.layers)):
        foreseen = rounded_sample(denoiser, PLAN, inputs, ranges, names, precision).numpy()
        excluded = tuple(name for name in ranges.layers if name not in names)
        made = _sample(_model(traces, precision, ranges, excluded), inputs, tmp_path / "g.onnx", optimise=precision != "fp8")
        error = np.abs(foreseen - exact).mean()
        assert error > 1e-4  # eight bits leave a trace
        assert np.abs(made - exact).mean() == pytest.approx(error, rel=0.15)
        base = 0.3 if precision == "int8" else 0.6  # the rest in fp16 flips some roundings
        assert np.abs(made - foreseen).mean() < (base if len(names) == 1 else 2) * error


def _constants(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(v.name): v.const_value.numpy() for graph in model.graphs() for v in graph.initializers.values()}


def _activation_scales(model: ir.Model, layer: str) -> list[float]:
    """The scales of what goes into a layer, in the order of rows."""
    constants, found = _constants(model), []
    for node in model.graph.all_nodes():
        if str(node.name).endswith(f"/{layer}"):
            quantize = node.inputs[0].producer()
            assert quantize.op_type == "DequantizeLinear"
            found.append(float(constants[quantize.inputs[1].name]))
    return found


def test_every_row_has_scales_of_its_own_and_a_loop_the_widest(traces: dict[str, Any], ranges: Ranges) -> None:
    largest = [max(-low, high) for low, high in ranges.layers["conv_in"].input]
    scales = _activation_scales(_model(traces, "int8-fp16", ranges), "conv_in")
    np.testing.assert_allclose(scales, np.array(largest) / 127, rtol=1e-3)
    assert len(set(scales)) == PLAN.rows
    (shared,) = _activation_scales(_model(traces, "int8-fp16", ranges, layout=loop), "conv_in")
    assert shared == pytest.approx(max(scales))


def test_weights_are_symmetric_eight_bits_with_a_scale_for_each_output(
    traces: dict[str, Any], denoiser: Denoiser, ranges: Ranges
) -> None:
    constants = _constants(_model(traces, "int8-fp16", ranges))
    for name, weight in denoiser.net.named_parameters():
        layer = name.removesuffix(".weight")
        if layer not in ranges.layers or f"{layer}.int8" not in constants:
            continue
        codes, scale = constants[f"{layer}.int8"], constants[f"{layer}.scale"].astype(np.float32)
        weight = weight.detach().numpy()
        assert codes.dtype == np.int8
        assert np.abs(codes).max() == 127
        views = (codes, codes.T) if weight.ndim == 2 else (codes,)  # a product may take the transpose
        errors = [
            np.abs(v * scale.reshape(-1, *[1] * (weight.ndim - 1)) - weight).max() for v in views if v.shape == weight.shape
        ]
        assert min(errors) <= 0.51 * scale.max() + 1e-3 * np.abs(weight).max()
        assert not constants[f"{layer}.zero"].any()


def _cannot_saturate(constants: dict[str, np.ndarray]) -> int:
    """Two products of unsigned eight bits with a layer's weights fit 16 signed bits, whichever two: the number of layers."""
    names = [name for name in constants if name.endswith(".int8")]
    for name in names:
        largest = np.sort(np.abs(constants[name].astype(int)), axis=None)[-2:].sum()
        assert 255 * largest <= np.iinfo(np.int16).max, name
    return len(names)


@pytest.mark.parametrize("layout", [unroll, loop])
def test_no_sum_of_two_products_saturates_where_a_processor_adds_them_in_16_bits(
    layout: Any, denoiser: Denoiser, inputs: Drawn
) -> None:
    """Weights as hard as can be: all of one size, so that every code is the largest there is."""
    hard = copy.deepcopy(denoiser)
    with torch.no_grad():
        for weight in hard.net.parameters():
            weight.copy_(0.1 * torch.sign(weight))
    network = with_weights(trace_network(hard, MANIFEST, "fp32"), hard, MANIFEST)
    ranges = collect(hard, PLAN, inputs, name="ddim3")
    constants = _constants(layout(network, PLAN, IMAGE, layers=_layers("int8", ranges)))
    assert _cannot_saturate(constants) > 10


def test_the_shipped_graph_does_not_saturate_either(digits: Bundle) -> None:
    model = onnx.load(digits.file(digits.manifest.graphs["sid1.int8"].file))
    assert _cannot_saturate({i.name: numpy_helper.to_array(i) for i in model.graph.initializer}) > 10


def test_only_the_form_for_cpus_has_zero_points_and_quantized_outputs(traces: dict[str, Any], ranges: Ranges) -> None:
    counts = {p: Counter(n.op_type for n in _model(traces, p, ranges).graph) for p in ("int8", "int8-fp16")}
    layers = len([n for n in traces["fp32"].traced.nodes if n.op_type == "Conv"])
    assert counts["int8"]["QuantizeLinear"] >= counts["int8-fp16"]["QuantizeLinear"] + PLAN.rows * layers
    codes = {p: {v.dtype for v in _constants(_model(traces, p, ranges)).values()} for p in counts}
    assert np.dtype(np.uint8) in codes["int8"]
    assert np.dtype(np.uint8) not in codes["int8-fp16"]
    assert np.dtype(np.int32) not in codes["int8-fp16"]


@pytest.mark.parametrize("precision", ["fp16", "int8-fp16"])
def test_kept_layers_compute_in_fp32(
    precision: str, traces: dict[str, Any], ranges: Ranges, inputs: Drawn, denoiser: Denoiser, tmp_path: Path
) -> None:
    excluded = ("conv_in", "conv_out")
    model = _model(traces, precision, ranges, excluded)
    for node in model.graph.all_nodes():
        if str(node.name).split("/")[-1] in excluded:
            assert node.inputs[1].const_value.dtype == ir.DataType.FLOAT
    if precision == "fp16":
        return
    exact = rounded_sample(denoiser, PLAN, inputs, ranges, [], "fp16").numpy()
    error = {
        len(k): np.square(_sample(_model(traces, precision, ranges, k), inputs, tmp_path / "g.onnx") - exact).mean()
        for k in ((), excluded)
    }
    assert error[2] < error[0]


def test_one_copy_of_the_weights_in_a_quarter_of_the_bytes(traces: dict[str, Any], ranges: Ranges, tmp_path: Path) -> None:
    size = {}
    for precision in ("fp32", "int8"):
        ir.save(_model(traces, precision, ranges), tmp_path / "g.onnx")
        model = onnx.load(tmp_path / "g.onnx")
        onnx.checker.check_model(model, full_check=True)
        size[precision] = sum(numpy_helper.to_array(i).nbytes for i in model.graph.initializer if "conv1" in i.name)
    assert size["int8"] < 0.5 * size["fp32"]


@pytest.mark.parametrize("precision", ["int8-fp16", "fp8"])
def test_engines_of_our_eight_bits_build_and_compute_in_them(precision: Precision, digits: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    if precision == "fp8":
        with digits.edit() as draft:
            known = digits.ranges("sid1")
            assert known is not None
            known.excluded["fp8"], known.psnr_db["fp8"] = ["conv_in", "conv_out"], (40.0, 41.0)
            draft.new("ranges/sid1.json").write_text(known.model_dump_json())
        digits = export_graphs(Bundle.load(digits.root), ["sid1"], [precision])
    name = f"sid1.{precision}"
    assert {r.graph: r.ok for r in check_graphs(digits)}[name]
    build_engines(digits, [name], settings=EngineSettings(targets=("89",), batch=(4,)))
    (engine,) = Bundle.load(digits.root).manifest.engines.values()
    excluded = len(digits.manifest.graphs[name].excluded)
    kind = precision.split("-")[0]
    assert engine.layers[kind] > 20
    assert engine.layers.get("fp32", 0) == excluded


def test_bf16_is_computed_by_the_definition_of_onnx(digits: Bundle) -> None:
    exported = export_graphs(digits, ["sid1"], ["bf16"])
    (result,) = (r for r in check_graphs(exported) if r.graph == "sid1.bf16")
    assert not result.skipped
    assert result.psnr_db > 25
    denoiser = load_network(exported, "sid1")
    golden = np.load(exported.file("golden.npz"))
    plan: Plan = exported.plan("sid1")
    with torch.no_grad():
        x = float(plan.sigmas[0]) * torch.tensor(golden["sid1/noise"][:, 0])
        made = denoiser.to(torch.bfloat16)(x, float(plan.sigmas[0]), torch.tensor(golden["sid1/labels"]))
    torchs = float(((made.numpy() - golden["sid1/sample"]) ** 2).mean())
    assert 10 * np.log10(4 / torchs) == pytest.approx(result.psnr_db, abs=5)  # as far off as torch's own bf16

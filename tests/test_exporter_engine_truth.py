"""Precision truth: every layer that computes is asked what it computes in, on networks TensorRT-RTX parsed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import onnx
import pytest
from onnx import TensorProto as Type
from small_graphs import loop, products, quantized, two_convolutions

from fewstep.exporter.engine.phases import Phases
from fewstep.exporter.engine.precision_truth import kernel_types, layer_precisions

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
LOGGER = trt.Logger(trt.Logger.ERROR)


class Parsed:
    """A parsed network, with the builder and parser it needs alive."""

    def __init__(self, graph: onnx.ModelProto, flags: int = 0) -> None:
        self.builder = trt.Builder(LOGGER)
        self.network = self.builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, LOGGER)
        assert self.parser.parse(graph.SerializeToString()), self.parser.get_error(0).desc()


def truth(graph: onnx.ModelProto, precision: Any, excluded: tuple[str, ...] = ()) -> dict[str, int]:
    return layer_precisions(Parsed(graph).network, precision, excluded)


def test_every_kind_of_product_is_seen() -> None:
    assert truth(products(Type.FLOAT16), "fp16") == {"fp16": 4}
    assert truth(products(Type.BFLOAT16), "bf16") == {"bf16": 4}


def test_attention_is_seen() -> None:
    nodes = [onnx.helper.make_node("Attention", ["x", "x", "x"], ["y"], name="attention")]
    x, y = (onnx.helper.make_tensor_value_info(n, Type.FLOAT, ["b", 2, 4, 8]) for n in "xy")
    graph = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
    )
    assert truth(graph, "fp32") == {"fp32": 1}
    with pytest.raises(ValueError, match=r"first 'attention_AttentionInput' in fp32"):
        truth(graph, "fp16")
    assert truth(graph, "fp16", ("attention",)) == {"fp32": 1}


def test_layers_inside_loops_are_seen() -> None:
    assert truth(loop(Type.FLOAT16), "fp16") == {"fp16": 1}
    with pytest.raises(ValueError, match=r"exported as fp16.*1 of 1 layers otherwise, first 'inner' in fp32"):
        truth(loop(Type.FLOAT), "fp16")


def test_a_layer_left_behind_is_named_unless_it_was_kept() -> None:
    graph = two_convolutions(Type.FLOAT16, Type.FLOAT)
    with pytest.raises(ValueError, match=r"1 of 2 layers otherwise, first 'eval_0/two' in fp32; export it again"):
        truth(graph, "fp16")
    for excluded in ("eval_0/two", "two"):
        assert truth(graph, "fp16", (excluded,)) == {"fp16": 1, "fp32": 1}
    with pytest.raises(ValueError, match="first 'eval_0/two'"):
        truth(graph, "fp16", ("wo", "one"))
    with pytest.raises(ValueError, match="first 'eval_0/one' in fp16"):
        truth(graph, "fp32")


@pytest.mark.parametrize(
    ("precision", "kind", "base"),
    [("int8", Type.INT8, Type.FLOAT), ("int8-fp16", Type.INT8, Type.FLOAT16), ("fp8", Type.FLOAT8E4M3FN, Type.FLOAT16)],
)
def test_quantized_layers_count_by_what_feeds_them(precision: str, kind: int, base: int) -> None:
    name, rest = precision.split("-")[0], "fp32" if precision == "int8" else "fp16"
    assert truth(quantized(kind, base=base), precision) == {name: 1}
    assert truth(quantized(kind, base=base, product=True), precision) == {name: 1, rest: 1}
    half = quantized(kind, base=base, weights=False)
    with pytest.raises(ValueError, match=rf"exported as {precision}.*first 'conv' in {rest}"):
        truth(half, precision)
    assert truth(half, precision, ("conv",)) == {rest: 1}


def test_fp8_is_not_int8_and_the_rest_must_have_the_base_type() -> None:
    with pytest.raises(ValueError, match="first 'conv' in fp8"):
        truth(quantized(Type.FLOAT8E4M3FN), "int8")
    with pytest.raises(ValueError, match="first 'product' in fp32"):
        truth(quantized(product=True), "int8-fp16")


def test_a_graph_that_computes_nothing_gets_no_engine() -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    x, y = (onnx.helper.make_tensor_value_info(n, Type.FLOAT, ["b", 4]) for n in "xy")
    graph = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    graph.ir_version = 10
    with pytest.raises(ValueError, match="nothing to build an engine for"):
        truth(graph, "fp32")


def test_asking_for_strong_typing_changes_no_type() -> None:
    """The flag TensorRT 10 needs, on the flavour that is here: accepted, same types."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = Parsed(two_convolutions(Type.FLOAT16, Type.FLOAT), flag).network
    assert layer_precisions(network, "fp16", ["two"]) == {"fp16": 1, "fp32": 1}


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ({"Format/Datatype": "Row major linear FP16 format (kLINEAR)"}, "fp16"),
        ({"Format/Datatype": "Row major Int8 format"}, "int8"),
        ({"DataType": "Half", "Format": "Row major linear FP32 format"}, "fp16"),
        ({"DataType": "Float"}, "fp32"),
        ({"DataType": "BFloat16"}, "bf16"),
        ({"DataType": "FP8"}, "fp8"),
    ],
)
def test_the_inspectors_json_is_read_in_both_forms(tensor: dict[str, str], kind: str) -> None:
    """As NVIDIA documents it for 10.x ("Format/Datatype") and 11.x; no engine could be inspected where this was written."""
    assert kernel_types({"Layers": [{"Name": "conv", "Inputs": [], "Outputs": [tensor]}, "myelin"]}) == {kind: 1}


def test_phases_nest_and_never_run_backwards() -> None:
    phases = Phases()
    seen = []
    phases.start("build", None, 2)
    phases.start("inner", "build", 4)
    for _ in range(2):
        phases.step("inner")
    seen.append(phases.now())
    phases.finish("inner")
    phases.start("surprise", "build", 10)
    seen.append(phases.now())
    phases.finish("surprise")
    phases.step("build")
    seen.append(phases.now())
    phases.step("unknown")
    assert seen == [(0.25, "inner 2/4"), (0.25, "surprise 0/10"), (0.5, "build 1/2")]


def test_fp32_means_fp32_and_not_tf32() -> None:
    """TF32 is on by default and would round every fp32 product to 10 bits. A process of its own, as Polygraphy needs."""
    code = (
        "import threading, tensorrt_rtx as trt\n"
        "from fewstep.exporter.engine import worker\n"
        "builder = trt.Builder(trt.Logger(trt.Logger.ERROR))\n"
        "network = builder.create_network(0)\n"
        "request = worker.Request('tensorrt_rtx', False, '', '', [(1, 1, 1)], ['89'], 'fp32', [], False, 1 << 30)\n"
        "monitor = worker._monitor(trt, print, threading.Event())\n"
        "config = worker._config(trt, request, network, monitor)(builder, network)\n"
        "default = builder.create_builder_config()\n"
        "flags = [c.get_flag(trt.BuilderFlag.TF32) for c in (default, config)]\n"
        "print(*flags, config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["True", "False", str(1 << 30)]

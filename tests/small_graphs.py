"""Small ONNX graphs, each with one thing that engines depend on, and a bundle to hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import GraphEntry
from fewstep.artifact.signature import ImageOutput, Signature
from fewstep.artifact.spec import Precision
from fewstep.sampling.parametrisation import Edm

WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    *,
    batch: str | int = "batch",
    inputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """x (batch, 4, 8, 8) float32 -> y of the same shape, through the given nodes."""
    x, y = (helper.make_tensor_value_info(name, Type.FLOAT, [batch, 4, 8, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "small", [x, *(inputs or [])], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _weight(name: str, kind: int, values: np.ndarray = WEIGHT) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def convolution(kind: int = Type.FLOAT, **more: Any) -> onnx.ModelProto:
    """One convolution in the given type, float32 at the edges."""
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("Conv", ["low", "w"], ["out"], name="conv", pads=[1] * 4),
        helper.make_node("Cast", ["out"], ["y"], to=Type.FLOAT),
    ]
    return model(nodes, [_weight("w", kind)], **more)


def two_convolutions(first: int, second: int) -> onnx.ModelProto:
    """Two convolutions, eval_0/one and eval_0/two, in types of their own."""
    nodes = []
    for source, target, name, kind in (("x", "h", "one", first), ("h", "y", "two", second)):
        nodes += [
            helper.make_node("Cast", [source], [f"{name}_low"], to=kind),
            helper.make_node("Conv", [f"{name}_low", f"{name}_w"], [f"{name}_out"], name=f"eval_0/{name}", pads=[1] * 4),
            helper.make_node("Cast", [f"{name}_out"], [target], to=Type.FLOAT),
        ]
    return model(nodes, [_weight("one_w", first), _weight("two_w", second)])


def quantized(
    kind: int = Type.INT8,
    *,
    base: int = Type.FLOAT,
    zero: int = 0,
    weights: bool = True,
    bias: bool = False,
    product: bool = False,
) -> onnx.ModelProto:
    """Q/DQ around one convolution. weights: quantize them too. product: a plain product of two activations follows."""
    tensors = [
        helper.make_tensor("scale", base, [], [0.1]),
        helper.make_tensor("zero", kind, [], [zero]),
        helper.make_tensor("scales", base, [4], [0.01] * 4),
        helper.make_tensor("zeros", kind, [4], [0] * 4),
        _weight("w", base),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=base),
        helper.make_node("QuantizeLinear", ["low", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
    ]
    if weights:
        nodes += [
            helper.make_node("QuantizeLinear", ["w", "scales", "zeros"], ["wq"], name="wq", axis=0),
            helper.make_node("DequantizeLinear", ["wq", "scales", "zeros"], ["wdq"], name="wdq", axis=0),
        ]
    inputs = ["dq", "wdq" if weights else "w"]
    if bias:
        tensors += [
            helper.make_tensor("b", Type.INT32, [4], [1] * 4),
            helper.make_tensor("bias_scales", base, [4], [1e-3] * 4),
            helper.make_tensor("bias_zeros", Type.INT32, [4], [0] * 4),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bias_scales", "bias_zeros"], ["bdq"], name="bdq", axis=0))
        inputs.append("bdq")
    nodes.append(helper.make_node("Conv", inputs, ["c"], name="conv", pads=[1] * 4))
    if product:
        nodes.append(helper.make_node("MatMul", ["c", "c"], ["p"], name="product"))
    nodes.append(helper.make_node("Cast", ["p" if product else "c"], ["y"], to=Type.FLOAT))
    return model(nodes, tensors)


def loop(kind: int = Type.FLOAT16, *, condition: bool = True) -> onnx.ModelProto:
    """Three passes of one convolution inside a Loop, its state in float32."""
    state, state_out = (helper.make_tensor_value_info(n, Type.FLOAT, ["batch", 4, 8, 8]) for n in ("s", "s_out"))
    going, going_out = (helper.make_tensor_value_info(n, Type.BOOL, []) for n in ("going", "going_out"))
    index = helper.make_tensor_value_info("i", Type.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_out"]),
            helper.make_node("Cast", ["s"], ["s_low"], to=kind),
            helper.make_node("Conv", ["s_low", "w"], ["s_conv"], name="inner", pads=[1] * 4),
            helper.make_node("Cast", ["s_conv"], ["s_out"], to=Type.FLOAT),
        ],
        "body",
        [index, going, state],
        [going_out, state_out],
    )
    tensors = [helper.make_tensor("trip", Type.INT64, [], [3]), _weight("w", kind)]
    if condition:
        tensors.append(helper.make_tensor("true", Type.BOOL, [], [True]))
    return model([helper.make_node("Loop", ["trip", "true" if condition else "", "x"], ["y"], name="loop", body=body)], tensors)


def products(kind: int = Type.FLOAT16) -> onnx.ModelProto:
    """A Gemm, an Einsum, a MatMul of two activations and a ConvTranspose, all of type kind."""
    tensors = [
        _weight("g", kind, WEIGHT[:2, :, :2, :2].reshape(4, 8)[:, :8].repeat(2, axis=0)),
        _weight("w", kind),
        helper.make_tensor("rows", Type.INT64, [2], [-1, 8]),
        helper.make_tensor("image", Type.INT64, [4], [-1, 4, 8, 8]),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("Reshape", ["low", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "g"], ["gemmed"], name="gemm"),
        helper.make_node("Reshape", ["gemmed", "image"], ["h"]),
        helper.make_node("Einsum", ["h", "h"], ["e"], name="einsum", equation="bcij,bcjk->bcik"),
        helper.make_node("MatMul", ["e", "e"], ["m"], name="matmul"),
        helper.make_node("ConvTranspose", ["m", "w"], ["t"], name="transposed", pads=[1] * 4),
        helper.make_node("Cast", ["t"], ["y"], to=Type.FLOAT),
    ]
    return model(nodes, tensors)


def foreign() -> onnx.ModelProto:
    """An operator of ONNX Runtime's own."""
    made = model([helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")], [])
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def bundle_of(
    path: Path,
    graph: onnx.ModelProto,
    precision: Precision,
    *,
    postprocess: onnx.ModelProto | None = None,
    data: str | None = None,
    **more: Any,
) -> Bundle:
    """A bundle with one graph, "small", in the step layout. data: keep weights there; more: fields of its GraphEntry."""
    with Draft.create(path, Signature(output=ImageOutput(channels=4, height=8, width=8))) as draft:
        net = DenoiserEntry(kind="UNet2DModel", directory=None, parametrisation=Edm(sigma_data=0.5))
        draft.manifest.components["net"] = net
        file = draft.new("graphs/small.onnx")
        onnx.save(graph, file, save_as_external_data=bool(data), location=data and Path(data).name, size_threshold=0)
        if postprocess:
            onnx.save(postprocess, draft.new("graphs/small.postprocess.onnx"))
        entry: dict[str, Any] = {"opset": 20, "limit": 1.0, "data": [data] if data else []} | more
        if postprocess:
            entry["postprocess"] = "graphs/small.postprocess.onnx"
        draft.manifest.graphs["small"] = GraphEntry(
            file="graphs/small.onnx", denoiser="net", plan=None, precision=precision, layout="step", **entry
        )
    return Bundle.load(path)

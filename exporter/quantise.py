"""Eight bits, explicit in the graph: quantise and dequantise nodes around convolutions and linear layers.

Activation scales belong to a row of the plan, because every row of an unrolled plan has nodes of its own and ranges differ
between noise levels; a Loop runs all rows through the same nodes and takes the widest. Weights have a scale per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from torch import Tensor

from fewstep.exporter.traced import Traced
from fewstep.exporter.writer import Writer
from fewstep.ranges import Interval, Ranges

__all__ = ["Quantiser"]

EightBit: TypeAlias = Literal["int8", "fp8"]
LAYERS = ("Conv", "Gemm", "MatMul")
CODES: dict[EightBit, type[np.generic]] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
LARGEST: dict[EightBit, float] = {"int8": 127.0, "fp8": 448.0}  # integers kept symmetric; float8 E4M3
Array = npt.NDArray[Any]
Weights = Mapping[str, Tensor]


@dataclass(eq=False)
class Quantiser:
    """Writes the quantised form of a network's layers.

    for_cpu: the form that ONNX Runtime's integer kernels take: unsigned activations with a zero point, quantised outputs and
    int32 biases. Without it: symmetric inputs and weights only, which is what TensorRT takes.
    """

    kind: EightBit
    ranges: Ranges
    kept: frozenset[str]
    for_cpu: bool
    _written: dict[object, ir.Value] = field(default_factory=dict)

    def takes(self, traced: Traced, node: ir.Node) -> bool:
        """Whether a node is a layer that is to be quantised."""
        layer = _layer(traced, node)
        return layer in self.ranges.layers and layer not in self.kept

    def write(
        self, writer: Writer, traced: Traced, node: ir.Node, inputs: list[ir.Value | None], weights: Weights, row: int | None
    ) -> ir.Value:
        """Write a layer in quantised form and return its output. inputs: its own, in the graph; row None: the widest of all."""
        layer = self.ranges.layers[_layer(traced, node)]
        x, value = inputs[0], node.inputs[1]
        assert x is not None
        assert value is not None
        assert value.dtype is not None
        name, dtype = str(value.name), value.dtype.numpy()
        array = traced.tensor(name, weights).numpy().astype(np.float32)
        axis = array.ndim - 1 if node.op_type == "MatMul" else 0  # Conv and Gemm keep outputs first
        scales = (
            np.maximum(np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != axis)), 1e-12) / LARGEST[self.kind]
        )
        interval = _widest(layer.input, row)
        quantised = [self._activation(writer, x, interval, dtype), self._weight(writer, name, array, scales, axis, dtype)]
        if len(inputs) > 2 and inputs[2] is not None:
            bias = inputs[2]
            if self.for_cpu:
                bias = self._bias(writer, node, weights, traced, scales * self._scale(interval)[0], row)
            quantised.append(bias)
        (output,) = writer.copy(node, quantised, f"{node.outputs[0].name}.{self.kind}.{writer.number()}")
        return self._activation(writer, output, _widest(layer.output, row), dtype) if self.for_cpu else output

    def _scale(self, interval: Interval) -> tuple[float, int]:
        """Scale and zero point of an activation."""
        low, high = min(interval[0], 0.0), max(interval[1], 0.0)
        if self.for_cpu:
            scale = max(high - low, 1e-12) / 255
            return scale, round(-low / scale)
        return max(-low, high, 1e-12) / LARGEST[self.kind], 0

    def _activation(self, writer: Writer, x: ir.Value, interval: Interval, dtype: np.dtype[np.generic]) -> ir.Value:
        """x through eight bits and back, once for all layers that read it with one interval."""
        key = (writer, x, interval)  # a node in the branch of an If is not there outside
        if key not in self._written:
            scale, zero = self._scale(interval)
            code = np.uint8 if self.for_cpu else CODES[self.kind]
            parameters = [writer.constant(np.array(scale, dtype)), writer.constant(np.array(zero).astype(code))]
            codes = writer.op("QuantizeLinear", x, *parameters)
            self._written[key] = writer.op("DequantizeLinear", codes, *parameters)
        return self._written[key]

    def _weight(
        self, writer: Writer, name: str, array: Array, scales: Array, axis: int, dtype: np.dtype[np.generic]
    ) -> ir.Value:
        scales = scales.astype(dtype)
        shaped = scales.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        codes = np.clip(array / shaped, -LARGEST[self.kind], LARGEST[self.kind])
        codes = (codes.round() if self.kind == "int8" else codes).astype(CODES[self.kind])
        return writer.op(
            "DequantizeLinear",
            writer.constant(codes, f"{name}.{self.kind}"),
            writer.constant(scales, f"{name}.scale"),
            writer.constant(np.zeros(scales.shape, CODES[self.kind]), f"{name}.zero"),
            axis=axis,
        )

    def _bias(
        self, writer: Writer, node: ir.Node, weights: Weights, traced: Traced, scales: Array, row: int | None
    ) -> ir.Value:
        value = node.inputs[2]
        assert value is not None
        name = f"{value.name}.int32.{row}"
        codes = np.round(traced.tensor(str(value.name), weights).numpy() / scales).astype(np.int32)
        return writer.op(
            "DequantizeLinear",
            writer.constant(codes, name),
            writer.constant(scales.astype(np.float32), f"{name}.scale"),
            writer.constant(np.zeros(scales.shape, np.int32), f"{name}.zero"),
            axis=0,
        )


def _layer(traced: Traced, node: ir.Node) -> str:
    """The layer of the network that a node computes, by the name of its weight; "" where it is none."""
    weight = node.inputs[1] if node.op_type in LAYERS and len(node.inputs) > 1 else None
    if weight is None or weight.const_value is not None or not weight.is_initializer():
        return ""
    name = traced.views.get(str(weight.name), (str(weight.name),))[0]
    return name.removeprefix("denoiser.net.").removesuffix(".weight")


def _widest(intervals: Sequence[Interval], row: int | None) -> Interval:
    if row is not None:
        return intervals[row]
    return min(low for low, _ in intervals), max(high for _, high in intervals)

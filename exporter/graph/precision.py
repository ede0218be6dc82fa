"""The precision of single layers, explicit in the graph: eight bits where asked, fp32 where less would hurt.

Eight bits are quantize and dequantize nodes around convolutions and linear layers. Activation scales belong to a row of the
plan, because every row of an unrolled plan has nodes of its own and ranges differ between noise levels; a Loop runs all rows
through the same nodes and takes the widest. Weights have a scale for each output channel; for CPUs they have 7 bits, so that
no kernel cuts a sum off (see fewstep.artifact.ranges).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fewstep.artifact.ranges import LARGEST_WEIGHT, Interval, Ranges
from fewstep.artifact.spec import Precision
from fewstep.exporter.graph.layer import Layer
from fewstep.exporter.graph.writer import Writer

__all__ = ["EIGHT_BITS", "LayerPrecision"]

EIGHT_BITS: tuple[Precision, ...] = ("int8", "int8-fp16", "fp8")  # precisions that need ranges
EightBit: TypeAlias = Literal["int8", "fp8"]
CODES: dict[EightBit, type[np.generic]] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
LARGEST_INPUT: dict[EightBit, float] = {"int8": 127.0, "fp8": 448.0}  # where it has no zero point
Array = npt.NDArray[Any]
Inputs: TypeAlias = list[ir.Value | None]


@dataclass(eq=False)
class LayerPrecision:
    """Writes a network's layers in another precision than the rest of it.

    Args:
        excluded: layers that are left out of this, and compute in fp32 where the rest has 16 bits.
        kind: eight bits for the layers in `ranges`, or None.
        ranges: of the plan's layers.
        for_cpu: the form that ONNX Runtime's integer kernels take: unsigned activations with a zero point, quantized outputs
            and int32 biases. Without it: symmetric inputs and weights only, which is what TensorRT takes.
    """

    excluded: frozenset[str]
    kind: EightBit | None = None
    ranges: Ranges | None = None
    for_cpu: bool = False
    _written: dict[object, ir.Value] = field(default_factory=dict)

    def takes(self, layer: Layer) -> bool:
        """Whether a layer is to be written in a precision of its own."""
        return layer.name in self.excluded or self.quantizes(layer)

    def quantizes(self, layer: Layer) -> bool:
        """Whether a layer is one of those that may be in eight bits, left out or not."""
        return self.ranges is not None and layer.name in self.ranges.layers

    def write(self, writer: Writer, layer: Layer, inputs: Inputs, prefix: str, row: int | None) -> ir.Value:
        """Write a layer and return its output.

        Args:
            writer: of the graph.
            layer: one that `takes` says yes of.
            inputs: its own, in the graph.
            prefix: of its name.
            row: of the plan; None for the widest range of all.
        """
        if layer.name not in self.excluded:
            return self._quantized(writer, layer, inputs, prefix, row)
        if layer.dtype == ir.DataType.FLOAT:
            return layer.copy(writer, inputs, prefix)
        upcast: Inputs = [writer.op("Cast", inputs[0], to=ir.DataType.FLOAT)]
        for i in range(1, len(inputs)):
            tensor = layer.tensor(i, ir.DataType.FLOAT)
            upcast.append(writer.weight(f"{layer.node.inputs[i].name}.fp32", tensor))  # type: ignore[union-attr]
        return writer.op("Cast", layer.copy(writer, upcast, prefix), to=layer.dtype)

    def _quantized(self, writer: Writer, layer: Layer, inputs: Inputs, prefix: str, row: int | None) -> ir.Value:
        assert self.ranges is not None
        assert inputs[0] is not None
        ranges, dtype = self.ranges.layers[layer.name], layer.dtype.numpy()
        codes, scales, axis = self.codes(layer)
        interval = _widest(ranges.input, row)
        quantized: Inputs = [self._activation(writer, inputs[0], interval, dtype)]
        quantized.append(self._weight(writer, layer.name, codes, scales.astype(dtype), axis))
        if len(inputs) > 2:
            bias = self._bias(writer, layer, scales * self._scale(interval)[0], row) if self.for_cpu else inputs[2]
            quantized.append(bias)
        output = layer.copy(writer, quantized, prefix)
        return self._activation(writer, output, _widest(ranges.output, row), dtype) if self.for_cpu else output

    @property
    def _largest_weight(self) -> float:
        return LARGEST_WEIGHT["fp8" if self.kind == "fp8" else "int8" if self.for_cpu else "int8-fp16"]

    @property
    def _code(self) -> type[np.generic]:
        return CODES[self.kind or "int8"]

    def _scale(self, interval: Interval) -> tuple[float, int]:
        """Scale and zero point of an activation."""
        low, high = min(interval[0], 0.0), max(interval[1], 0.0)
        if self.for_cpu:
            scale = max(high - low, 1e-12) / 255
            return scale, round(-low / scale)
        return max(-low, high, 1e-12) / LARGEST_INPUT[self.kind or "int8"], 0

    def _activation(self, writer: Writer, x: ir.Value, interval: Interval, dtype: np.dtype[np.generic]) -> ir.Value:
        """x through eight bits and back, once for all layers that read it with one interval."""
        key = (writer, x, interval)  # a node in the branch of an If is not there outside
        if key not in self._written:
            scale, zero = self._scale(interval)
            code = np.uint8 if self.for_cpu else self._code
            parameters = [writer.constant(np.array(scale, dtype)), writer.constant(np.array(zero).astype(code))]
            codes = writer.op("QuantizeLinear", x, *parameters)
            self._written[key] = writer.op("DequantizeLinear", codes, *parameters)
        return self._written[key]

    def codes(self, layer: Layer) -> tuple[ir.TensorProtocol, Array, int]:
        """A layer's weight in eight bits, made when it is read; its scales, one for each output, and their axis."""
        array = layer.tensor(1).numpy().astype(np.float32)
        axis = array.ndim - 1 if layer.node.op_type == "MatMul" else 0  # Conv and Gemm keep outputs first
        largest = np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != axis))
        scales = np.maximum(largest, 1e-12) / self._largest_weight
        name, shape = f"{layer.name}.{self.kind}", ir.Shape(array.shape)
        dtype = ir.DataType.from_numpy(np.dtype(self._code))
        return ir.LazyTensor(lambda: self._coded(layer, scales, axis, name), dtype, shape, name=name), scales, axis

    def _coded(self, layer: Layer, scales: Array, axis: int, name: str) -> ir.TensorProtocol:
        array = layer.tensor(1).numpy().astype(np.float32)
        shaped = scales.astype(layer.dtype.numpy()).astype(np.float32).reshape(_along(axis, array.ndim))
        codes = np.clip(array / shaped, -self._largest_weight, self._largest_weight)
        return ir.tensor((codes.round() if self.kind == "int8" else codes).astype(self._code), name=name)

    def _weight(self, writer: Writer, name: str, codes: ir.TensorProtocol, scales: Array, axis: int) -> ir.Value:
        return writer.op(
            "DequantizeLinear",
            writer.weight(str(codes.name), codes),
            writer.constant(scales, f"{name}.scale"),
            writer.constant(np.zeros(scales.shape, self._code), f"{name}.zero"),
            axis=axis,
        )

    def _bias(self, writer: Writer, layer: Layer, scales: Array, row: int | None) -> ir.Value:
        name = f"{layer.name}.bias.int32.{row}"
        codes = np.round(layer.tensor(2).numpy() / scales).astype(np.int32)
        return writer.op(
            "DequantizeLinear",
            writer.constant(codes, name),
            writer.constant(scales.astype(np.float32), f"{name}.scale"),
            writer.constant(np.zeros(scales.shape, np.int32), f"{name}.zero"),
            axis=0,
        )


def _along(axis: int, rank: int) -> list[int]:
    """The shape in which numbers go along an axis."""
    return [-1 if i == axis else 1 for i in range(rank)]


def _widest(intervals: Sequence[Interval], row: int | None) -> Interval:
    if row is not None:
        return intervals[row]
    return min(low for low, _ in intervals), max(high for _, high in intervals)

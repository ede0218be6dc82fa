"""A convolution or linear layer of a traced network, known by the name it has in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import Tensor

from fewstep.exporter.graph.traced import Traced
from fewstep.exporter.graph.writer import Writer

__all__ = ["NET", "Layer", "layer_names"]

NET = "denoiser.net."  # how the names of a network's weights begin in a trace
OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Layer:
    """`node` computes the layer `name` with its weight as input 1 and its bias, if any, as input 2.

    Args:
        name: in torch, from the network on.
        node: of the trace.
        traced: that the node is of.
        weights: by the names of the trace.
    """

    name: str
    node: ir.Node
    traced: Traced
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, node: ir.Node, traced: Traced, weights: Mapping[str, Tensor]) -> Layer | None:
        """The layer that a node computes; None where it computes something else.

        Args:
            node: of the trace.
            traced: that the node is of.
            weights: by the names of the trace.
        """
        weight = node.inputs[1] if node.op_type in OPERATORS else None
        if weight is None or weight.const_value is not None or not weight.is_initializer():
            return None
        name, _ = traced.views.get(str(weight.name), (str(weight.name), None))
        return cls(name.removeprefix(NET).removesuffix(".weight"), node, traced, weights)

    @property
    def dtype(self) -> ir.DataType:
        """What the trace computes it in."""
        weight = self.node.inputs[1]
        assert weight is not None
        assert weight.dtype is not None
        return weight.dtype

    def tensor(self, i: int, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """The weight (1) or the bias (2), in the trace's precision unless another is asked.

        Args:
            i: 1 or 2.
            dtype: to be converted to.
        """
        value = self.node.inputs[i]
        assert value is not None
        return self.traced.tensor(str(value.name), self.weights, dtype)

    def copy(self, writer: Writer, inputs: Sequence[ir.Value | None], prefix: str) -> ir.Value:
        """Write the layer into a graph; its node is called after it.

        Args:
            writer: of the graph.
            inputs: its own, in that graph.
            prefix: of its name.
        """
        (output,) = writer.copy(self.node, inputs, f"{prefix}/{self.node.outputs[0].name}", label=f"{prefix}/{self.name}")
        return output


def layer_names(traced: Traced, weights: Mapping[str, Tensor]) -> list[str]:
    """Every layer of a trace.

    Args:
        traced: a network or a decoder.
        weights: by the names of the trace.
    """
    layers = (Layer.of(node, traced, weights) for node in traced.nodes)
    return [layer.name for layer in layers if layer is not None]

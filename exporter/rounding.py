"""bf16 where there are no bf16 kernels: every operation in fp32, its result rounded to bf16. Needs the onnx package.

A kernel accumulates in fp32 and rounds once, so this is what a GPU computes, up to the order of sums.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["rounded_to_bf16"]

BF16 = TensorProto.BFLOAT16


def rounded_to_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A straight graph with bf16 layers as one that any ONNX Runtime computes, without optimisations that drop rounding."""
    half = {i.name for i in model.graph.initializer if i.data_type == BF16}
    nodes = []
    for node in model.graph.node:
        target = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if target == BF16:
            half |= set(node.output)
            nodes += _rounding(node.input[0], node.output[0])
        elif target is None and half & set(node.input) and node.op_type != "Shape":
            half |= set(node.output)
            for i, name in enumerate(node.output):
                copy.output[i] = f"{name}/exact"
            nodes += [copy, *(n for name in node.output for n in _rounding(f"{name}/exact", name))]
        else:
            nodes.append(copy)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == BF16:
            made.graph.initializer[i].CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
            )
    return made


def _rounding(name: str, result: str) -> list[onnx.NodeProto]:
    there = helper.make_node("Cast", [name], [f"{result}/bf16"], to=BF16)
    return [there, helper.make_node("Cast", [f"{result}/bf16"], [result], to=TensorProto.FLOAT)]

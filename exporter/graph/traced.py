"""A torch module as ONNX nodes: traced once per architecture without its weights, which are attached by name and never copied.

Every value knows what it depends on (the image, the timestep, the condition), which is what specialisation lives on.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from math import isclose, isfinite
from threading import get_ident
from typing import TextIO

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype
from onnxscript import optimizer
from torch import Tensor, nn

from fewstep.models.denoiser import named_tensors

__all__ = ["BATCH", "OPSET", "Traced", "lazy", "trace"]

OPSET = 20
BATCH = "batch"  # what a value depends on that only needs to know how many images there are
View = tuple[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True, eq=False)
class Traced:
    """Nodes in order, with what they read.

    Args:
        scope: what sets its constants apart from those of another trace in one graph.
        nodes: of one evaluation.
        inputs: by name.
        constants: the initializers by name, weights among them without a value.
        views: initializers that are another view (name, function) of a weight, such as its transpose.
        output: of the last node.
    """

    scope: str
    nodes: tuple[ir.Node, ...]
    inputs: Mapping[str, ir.Value]
    constants: Mapping[str, ir.Value]
    views: Mapping[str, View]
    output: ir.Value

    @cached_property
    def depends(self) -> dict[ir.Value, frozenset[str]]:
        """The inputs that each value depends on; BATCH where only their number of images matters."""
        found = {value: frozenset((name,)) for name, value in self.inputs.items()}
        given = frozenset(found)
        for node in self.nodes:
            sources = [i for i in node.inputs if i is not None]
            if node.op_type == "Shape" and sources[0] in given:
                union = frozenset((BATCH,))
            else:
                union = frozenset().union(*(found.get(i, frozenset()) for i in sources))
            found |= dict.fromkeys(node.outputs, union)
        return found

    def needed(self, outputs: Sequence[ir.Value], known: Mapping[ir.Value, object]) -> list[ir.Node]:
        """The nodes that compute the outputs where the values in `known` are there already, in order.

        Args:
            outputs: values of the trace.
            known: values of the trace that need no node.
        """
        wanted = {v for v in outputs if v not in known}
        chosen = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                chosen.append(node)
                wanted |= {i for i in node.inputs if i is not None and i not in known}
        return chosen[::-1]

    def tensor(self, name: str, weights: Mapping[str, Tensor], dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """The value of a constant: its own, or the weight of that name; in the precision of the trace unless asked.

        Args:
            name: of a constant.
            weights: by the names of the trace.
            dtype: to be converted to.
        """
        value = self.constants[name]
        if value.const_value is not None:
            return value.const_value
        base, view = self.views.get(name, (name, _same))
        dtype = dtype or value.dtype
        assert dtype is not None
        return lazy(name, weights[base], dtype, view)

    def name(self, value: ir.Value) -> str:
        """What a constant is called in a graph: a weight by its own name, numbers of the trace within its scope."""
        return str(value.name) if value.const_value is None else f"{self.scope}/{value.name}"

    def bytes(self, weights: Mapping[str, Tensor]) -> int:
        """What all constants together take."""
        return sum(self.tensor(name, weights).nbytes for name in self.constants)


def lazy(name: str, weight: Tensor, dtype: ir.DataType, view: Callable[[Tensor], Tensor]) -> ir.TensorProtocol:
    """A weight as a tensor of the graph, converted when it is written and not before: memory holds one copy of a network.

    Args:
        name: what the tensor is called.
        weight: in torch; it stays where it is.
        dtype: what it is converted to.
        view: what rearranges it.
    """
    shape = ir.Shape(view(weight).shape)
    return ir.LazyTensor(
        lambda: TorchTensor(view(weight.detach()).to(to_torch_dtype(dtype)).contiguous(), name=name), dtype, shape, name=name
    )


def trace(scope: str, module: nn.Module, inputs: Mapping[str, Tensor], static: Sequence[str] = ()) -> Traced:
    """Trace a module with forward(*inputs) on torch's meta device.

    Args:
        scope: see Traced.
        module: with its weights on the meta device.
        inputs: example tensors by name, batch 2 (a batch traced at 1 would stay 1), which is dynamic.
        static: names of those without a batch.
    """
    batch = torch.export.Dim.DYNAMIC
    shapes = tuple({} if name in static else {0: batch} for name in inputs)
    with torch.no_grad(), torch.device("meta"), _quiet():
        examples = tuple(value.to("meta") for value in inputs.values())
        program = torch.export.export(module, examples, dynamic_shapes=(shapes,))
        converted = torch.onnx.export(
            program, opset_version=OPSET, input_names=list(inputs), output_names=["out"], optimize=False, verbose=False
        )
        assert converted is not None
        model = converted.model
        weights = {name for name, _ in named_tensors(module)}
        for name in weights & model.graph.initializers.keys():
            model.graph.initializers[name].const_value = None
        ClearMetadataAndDocStringPass()(model)  # the exporter's stack traces would be most of an unrolled file
        nearly = _hide_nearly_whole(model.graph)
        optimizer.optimize(model)
        if _fix_shapes(model):
            optimizer.optimize(model)  # what was computed from them folds, too
        for value, number in nearly.items():
            value.const_value = number
    views = _fold_views(model.graph)
    (output,) = model.graph.outputs
    graph_inputs = {str(value.name): value for value in model.graph.inputs}
    return Traced(scope, tuple(model.graph), graph_inputs, dict(model.graph.initializers), views, output)


class _OfOthers(StringIO):
    """A stream without what the thread that made this prints: a progress bar's thread goes on drawing."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._thread = stream, get_ident()

    def write(self, text: str) -> int:
        return len(text) if get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on packages torch.onnx does not need here, on its own use of deprecated torch, on absent weights; without
    the graph that torch.export prints before it raises. What other threads print stays.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # errors are raised, and said once
    try:
        with warnings.catch_warnings(), redirect_stderr(_OfOthers(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _hide_nearly_whole(graph: ir.Graph) -> dict[ir.Value, ir.TensorProtocol]:
    """Numbers such as 1e-15 become initializers without a value, so that onnxscript does not take them for 0 or 1 and leaves
    out what adds or multiplies them: some networks divide by a sum that may be 0 without it. Gives what they are.
    """
    hidden: dict[ir.Value, ir.TensorProtocol] = {}
    for node in list(graph):
        number = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
        if number is None or number.size != 1 or not number.dtype.is_floating_point():
            continue
        exact = float(number.numpy().reshape(()))
        if isfinite(exact) and exact != round(exact) and isclose(exact, round(exact), rel_tol=1e-5, abs_tol=1e-8):
            value = ir.val(node.outputs[0].name, number.dtype, ir.Shape(number.numpy().shape))
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
            graph.initializers[str(value.name)] = value
            hidden[value] = number
    return hidden


def _fix_shapes(model: ir.Model) -> bool:
    """Shapes that are known but for the batch become constants: the targets of reshapes, and parts without the batch.

    Says whether such a part was found.
    """
    graph, parts = model.graph, False
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type == "Slice" and (found := _dims(output)) and None not in found:
            ir.convenience.replace_all_uses_with(output, _constant(graph, f"{output.name}/dims", found))
            parts = True
        target = node.inputs[1] if node.op_type == "Reshape" else None
        if target is not None and target.const_value is None:
            known = [d if isinstance(d, int) else None for d in output.shape or ()]
            dims = _dims(target) or known
            if dims.count(None) == 1 and 0 not in dims:
                node.replace_input_with(1, _constant(graph, f"{output.name}/shape", dims))
    RemoveUnusedNodesPass()(model)
    return parts


def _dims(value: ir.Value | None) -> list[int | None] | None:
    """The numbers of a shape that a graph computes, None for the batch; None where it is not computed from shapes."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    if constant is not None:
        return [int(n) for n in constant.numpy().reshape(-1)]
    node = value.producer() if value is not None else None
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Shape" and "end" not in node.attributes and node.inputs[0].shape is not None:
        return [d if isinstance(d, int) else None for d in node.inputs[0].shape]
    if node.op_type == "Slice" and len(node.inputs) == 3:
        whole, first, last = (_dims(i) for i in node.inputs)
        return whole[first[0] : last[0]] if whole and first and last else None
    if node.op_type == "Concat":
        parts = [_dims(i) for i in node.inputs]
        return [d for part in parts if part for d in part] if all(parts) else None
    return None


def _constant(graph: ir.Graph, name: str, dims: list[int | None]) -> ir.Value:
    array = np.array([-1 if d is None else d for d in dims], np.int64)
    constant = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.initializers[name] = constant
    return constant


def _fold_views(graph: ir.Graph) -> dict[str, View]:
    """Nodes that only turn a weight become initializers of their own; their values are views of the weight."""
    views: dict[str, View] = {}
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        view = _view(node)
        if view is None or source is None or not source.is_initializer() or source.const_value is not None:
            continue
        base, before = views.get(str(source.name), (str(source.name), _same))
        (output,) = node.outputs
        name = f"{source.name}/{output.name}"
        folded = ir.val(name, source.dtype, output.shape)
        graph.initializers[name] = folded
        views[name] = (base, _after(before, view))
        ir.convenience.replace_all_uses_with(output, folded)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return views


def _same(t: Tensor) -> Tensor:
    return t


def _after(before: Callable[[Tensor], Tensor], view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda t: view(before(t))


def _view(node: ir.Node) -> Callable[[Tensor], Tensor] | None:
    """What a node does to a weight, if that only rearranges it."""
    if node.op_type == "Transpose":
        perm = node.attributes["perm"].as_ints()
        return lambda t: t.permute(*perm)
    argument = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) == 2 and node.inputs[1] else None
    if node.op_type not in ("Unsqueeze", "Reshape") or argument is None:
        return None
    numbers = [int(n) for n in argument.numpy().reshape(-1)]
    if node.op_type == "Reshape":
        return (lambda t: t.reshape(numbers)) if 0 not in numbers else None

    def unsqueeze(t: Tensor) -> Tensor:
        for axis in sorted(n % (t.ndim + len(numbers)) for n in numbers):
            t = t.unsqueeze(axis)
        return t

    return unsqueeze

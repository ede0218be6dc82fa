"""An ONNX graph under construction, and arrays that write into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fewstep.exporter.graph.traced import OPSET

__all__ = ["Symbol", "Writer"]


class Writer:
    """The nodes of a graph, or of the body of a Loop or a branch of an If inside it.

    A branch keeps its constants in the graph around it. A body keeps its own: ONNX Runtime lays out weights for its kernels
    only where they belong to the graph that uses them, and a Loop over weights outside of it is slower.
    """

    def __init__(self, outer: Writer | None = None, *, branch: bool = False) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = outer.initializers if outer and branch else {}
        self._own = not branch
        self._numbers: count[int] = outer._numbers if outer else count()
        self._labels: Counter[str] = outer._labels if outer else Counter()
        around = outer._scope if outer else ""
        self._scope: str = f"body_{self.number()}/" if outer and not branch else around

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: int | float | Sequence[int] | ir.Graph) -> ir.Value:
        """Write a node with one output.

        Args:
            kind: of operator, in ONNX's standard.
            inputs: None for one that is left out.
            attributes: of the operator.
        """
        (output,) = self.outputs(kind, 1, *inputs, **attributes)
        return output

    def outputs(
        self, kind: str, number: int, *inputs: ir.Value | None, **attributes: int | float | Sequence[int] | ir.Graph
    ) -> Sequence[ir.Value]:
        """Write a node with several outputs.

        Args:
            kind: of operator, in ONNX's standard.
            number: of outputs.
            inputs: None for one that is left out.
            attributes: of the operator.
        """
        node = ir.node(kind, inputs, attributes, num_outputs=number)
        self.append(node, f"{kind.lower()}_{self.number()}")
        return node.outputs

    def number(self) -> int:
        """A number that no other name in the graph has."""
        return next(self._numbers)

    def append(self, node: ir.Node, name: str, label: str = "") -> None:
        """Add a node; its outputs are called `name`, counted where there are several, and itself `label` or the same.

        Args:
            node: that is in no graph yet.
            name: of its outputs.
            label: of the node; one that is used already gets a number behind it.
        """
        label = label or name
        node.name = f"{label}.{self._labels[label]}" if self._labels[label] else label  # a module may use a layer twice
        self._labels[label] += 1
        for i, output in enumerate(node.outputs):
            output.name = f"{name}.{i}" if i else name
        self.nodes.append(node)

    def constant(self, value: float | Sequence[int] | npt.NDArray[np.generic], name: str = "") -> ir.Value:
        """A constant: floats as float32, whole numbers as int64, arrays as they are.

        Args:
            value: float32, int64 or as it is.
            name: the numbers themselves unless given, so that equal ones are one.
        """
        array = (
            value if isinstance(value, np.ndarray) else np.array(value, np.float32 if isinstance(value, float) else np.int64)
        )
        name = name or f"constant_{array.dtype.name}_{array.tolist()}"
        return self.weight(name, ir.tensor(array, name=name))

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """The graph's value for a named tensor, one for everything that uses it.

        Args:
            name: within the body that it is written in.
            tensor: of the first use; later ones of that name are not read.
        """
        name = self._scope + name  # a body must not reuse a name of the graph around it
        if name not in self.initializers:
            self.initializers[name] = ir.val(name, const_value=tensor)
        return self.initializers[name]

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], name: str, label: str = "") -> Sequence[ir.Value]:
        """Append a copy of another graph's node with inputs of this one.

        Args:
            node: of another graph.
            inputs: in this one; None for one that is left out.
            name: of its outputs.
            label: of the node, `name` unless given.
        """
        new = ir.Node(node.domain, node.op_type, inputs, node.attributes, num_outputs=len(node.outputs))
        self.append(new, name, label)
        return new.outputs

    def graph(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """What was written so far, as the body of a Loop or a branch of an If.

        Args:
            name: of the graph.
            inputs, outputs: its own.
        """
        return ir.Graph(inputs, outputs, nodes=self.nodes, initializers=self._used() if self._own else [], name=name)

    def _used(self) -> list[ir.Value]:
        return [value for value in self.initializers.values() if value.uses()]

    def model(self, name: str, inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value]) -> ir.Model:
        """What was written, as a model; outputs by name, their type and shape already set.

        Args:
            name: of the graph.
            inputs: of the outermost graph.
            outputs: they are called by these names.
        """
        for key, value in outputs.items():
            value.name = key
        graph = ir.Graph(
            inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=self._used(),
            name=name,
            opset_imports={"": OPSET},
        )
        return ir.Model(graph, ir_version=10, producer_name="fewstep")


class Symbol:
    """An array that writes ONNX where numpy would compute; what a plan does with arrays, and no more."""

    __array_ufunc__ = None  # numpy scalars leave the product to __rmul__

    def __init__(self, writer: Writer, value: ir.Value) -> None:
        self.writer, self.value = writer, value

    def _with(self, kind: str, other: Symbol | float) -> Symbol:
        value = other.value if isinstance(other, Symbol) else self.writer.constant(float(other))
        return Symbol(self.writer, self.writer.op(kind, self.value, value))

    def __add__(self, other: Symbol) -> Symbol:
        return self._with("Add", other)

    def __sub__(self, other: Symbol) -> Symbol:
        return self._with("Sub", other)

    def clip(self, low: float, high: float) -> Symbol:
        """Cut to [low, high].

        Args:
            low, high: numbers.
        """
        return Symbol(self.writer, self.writer.op("Clip", self.value, self.writer.constant(low), self.writer.constant(high)))

    def __mul__(self, factor: Symbol) -> Symbol:
        return self._with("Mul", factor)

    def __rmul__(self, factor: Symbol | float) -> Symbol:
        return self._with("Mul", factor)

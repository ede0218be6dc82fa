"""Network evaluations written into a graph: each copies the traced nodes, all share the weights and whatever can be shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from torch import Tensor

from fewstep.artifact.signature import Input, Signature
from fewstep.exporter.graph.layer import Layer
from fewstep.exporter.graph.precision import LayerPrecision
from fewstep.exporter.graph.specialise import TIMESTEP, Folded
from fewstep.exporter.graph.traced import BATCH, Traced
from fewstep.exporter.graph.writer import Writer
from fewstep.sampling.parametrisation import Scales

__all__ = ["At", "Evaluations", "Kind", "Network", "write"]

# Which condition an evaluation sees: the given one, the one that means "none", or both in one batch of twice the size.
Kind = Literal["given", "null", "both"]


@dataclass(frozen=True, eq=False)
class Network:
    """A denoiser's network, traced: x (B, C, ...), timestep (), inputs -> out (B, C, ...), fp32 at the edges.

    Args:
        traced: its nodes.
        weights: by the names of the trace.
        scales: of a sigma, how its output becomes D.
        state: (C, ...), what it works on.
        signature: of the bundle.
    """

    traced: Traced
    weights: Mapping[str, Tensor]
    scales: Callable[[float], Scales]
    state: tuple[int, ...]
    signature: Signature


def write(
    writer: Writer,
    traced: Traced,
    weights: Mapping[str, Tensor],
    known: dict[ir.Value, ir.Value],
    prefix: str,
    *,
    outputs: Sequence[ir.Value] = (),
    layers: LayerPrecision | None = None,
    row: int | None = None,
) -> ir.Value:
    """Copy the nodes that lead from the known values to the outputs (by default the traced one) into a graph.

    Args:
        writer: of the graph.
        traced: whose nodes are copied.
        weights: by the names of the trace.
        known: values of the trace that the graph has already; it gains those that are written.
        prefix: of the names of nodes.
        outputs: of the trace.
        layers: the precision of single layers.
        row: of the plan; None for any.

    Returns:
        The last output's value in the graph.
    """
    outputs = outputs or [traced.output]
    for node in traced.needed(outputs, known):
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is not None and value not in known:
                known[value] = writer.weight(traced.name(value), traced.tensor(str(value.name), weights))
            inputs.append(known[value] if value is not None else None)
        layer = Layer.of(node, traced, weights)
        if layer is None:
            name = f"{prefix}/{node.outputs[0].name}"
            label = f"{name}/{node.op_type}"  # a layer may be called as a value is
            known |= zip(node.outputs, writer.copy(node, inputs, name, label=label), strict=True)
        elif layers is not None and layers.takes(layer):
            known[node.outputs[0]] = layers.write(writer, layer, inputs, prefix, row)
        else:
            known[node.outputs[0]] = layer.copy(writer, inputs, prefix)
    return known[outputs[-1]]


@dataclass(frozen=True, eq=False)
class At:
    """Where in a plan an evaluation stands.

    Args:
        name: what its nodes are called after.
        row: a number in a straight graph, a value () in a Loop, None where the timestep is an input.
        timestep: a value (); None where all of it is folded.
    """

    name: str
    row: int | ir.Value | None
    timestep: ir.Value | None = None


class Evaluations:
    """The evaluations of one network in one graph.

    What depends on the condition alone (its embedding, the keys and values of cross-attention) is written once, in the
    outermost graph; what depends on the noise level alone comes folded.
    """

    def __init__(
        self,
        network: Network,
        root: Writer,
        x: ir.Value,
        given: Sequence[ir.Value],
        null: Mapping[str, ir.Value],
        *,
        folded: Folded,
        layers: LayerPrecision | None = None,
    ) -> None:
        """x: a state of the outermost graph, for its batch size. null: what means "none", of inputs that bring it."""
        self.network, self.folded, self.layers = network, folded, layers
        self._root, self._x, self._given, self._brought = root, x, given, null
        self._null: list[ir.Value] = []
        self._shared: dict[Kind, dict[ir.Value, ir.Value]] = {}

    def evaluate(self, writer: Writer, x: ir.Value, kind: Kind, at: At) -> ir.Value:
        """F(x) for one kind of condition.

        Args:
            writer: of the graph or the body that it stands in.
            x: (B, C, ...), scaled already; for "both" the states twice, (2 B, C, ...).
            kind: of the condition.
            at: where in the plan.
        """
        name = f"{at.name}.{kind}"
        known = dict(self._sharing(kind)) | self._tabled(writer, kind, at.row)
        known[self.network.traced.inputs["x"]] = x
        if at.timestep is not None:
            known[self.network.traced.inputs[TIMESTEP]] = at.timestep
        row = at.row if isinstance(at.row, int) else None
        return write(writer, self.network.traced, self.network.weights, known, name, layers=self.layers, row=row)

    def _sharing(self, kind: Kind) -> dict[ir.Value, ir.Value]:
        """What all evaluations of a kind share: the condition and everything that depends on nothing else."""
        if kind not in self._shared:
            traced = self.network.traced
            names = [name for name in traced.inputs if name not in ("x", TIMESTEP)]
            known = dict(zip((traced.inputs[n] for n in names), self.condition(kind), strict=True))
            folded = dict.fromkeys([*self.folded.rows, *self.folded.labels])
            free = frozenset((*names, BATCH))
            nodes = traced.needed([traced.output], folded)
            shared = [v for n in nodes for v in n.outputs if traced.depends[v] <= free and v not in folded]
            if any(n.op_type == "Shape" and n.inputs[0] is traced.inputs["x"] for n in traced.needed(shared, {})):
                known[traced.inputs["x"]] = self._x if kind != "both" else self._root.op("Concat", self._x, self._x, axis=0)
            if shared:
                write(self._root, traced, self.network.weights, known, f"shared.{kind}", outputs=shared, layers=self.layers)
            self._shared[kind] = known
        return self._shared[kind]

    def condition(self, kind: Kind) -> Sequence[ir.Value]:
        """The condition's tensors for a kind of evaluation."""
        if kind == "given":
            return self._given
        if kind == "both":
            pairs = zip(self._given, self.condition("null"), strict=True)
            return [self._root.op("Concat", a, b, axis=0) for a, b in pairs]
        if not self._null:
            self._null = [self._none(*pair) for pair in zip(self.network.signature.inputs, self._given, strict=True)]
        return self._null

    def _none(self, each: Input, given: ir.Value) -> ir.Value:
        """What means "none" for an input, as often as there are samples."""
        if each.name in self._brought:
            return self._brought[each.name]
        assert each.null_constant is not None, "plans without it are refused"
        return self._root.op(
            "Expand", self._root.constant(each.null_constant[None], f"{each.name}.none"), self._root.op("Shape", given)
        )

    def _tabled(self, writer: Writer, kind: Kind, row: int | ir.Value | None) -> dict[ir.Value, ir.Value]:
        """The folded values of a row."""
        known: dict[ir.Value, ir.Value] = {}
        tabled = self.network.signature.tabled
        for value, table in self.folded.rows.items():
            known[value] = self._line(writer, table, f"{value.name}/rows", row)
        for value, table in self.folded.labels.items():
            assert tabled is not None, "there are tables of one input"
            if kind == "null":
                known[value] = self._line(writer, table[:, -1:], f"{value.name}/none", row)
            else:
                lines = self._line(writer, table, f"{value.name}/labels", row)
                labels = self._sharing(kind)[self.network.traced.inputs[tabled.name]]
                known[value] = writer.op("Gather", lines, labels, axis=0)
        return known

    @staticmethod
    def _line(writer: Writer, table: np.ndarray, name: str, row: int | ir.Value | None) -> ir.Value:
        if isinstance(row, int):
            return writer.constant(table[row], f"{name}.{row}")
        return writer.op("Gather", writer.constant(table, name), row, axis=0)

"""The loop layout: one ONNX Loop over a plan's tables. The network's nodes stand in it once, its weights outside of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fewstep.artifact.signature import Output
from fewstep.exporter.graph.evaluation import At, Network
from fewstep.exporter.graph.layouts import PlanGraph, TracedDecoder, guided_output, guided_where, scaled
from fewstep.exporter.graph.precision import LayerPrecision
from fewstep.exporter.graph.writer import Symbol, Writer
from fewstep.sampling.plan import Floats, Plan

__all__ = ["loop"]


def loop(
    network: Network,
    plan: Plan,
    output: Output,
    *,
    decoder: TracedDecoder | None = None,
    batched_guidance: bool = False,
    layers: LayerPrecision | None = None,
) -> ir.Model:
    """The whole plan as one Loop that carries the states and estimates which later rows read.

    Rows without guidance skip the unconditional evaluation by an If inside, which takes two passes.

    Args:
        network: traced.
        plan: in its coordinates.
        output: of the signature.
        decoder: of a latent model.
        batched_guidance: both conditions in one batch, for plans that are guided in every row.
        layers: the precision of single layers; of what they see, the widest range of all rows counts.

    Raises:
        ValueError: for a plan that does not fit.
    """
    graph = PlanGraph(network, plan, layers)
    body = _Body(graph, batched_guidance=batched_guidance)
    x = plan.begin(graph.start).value
    empty = graph.root.op("Mul", x, graph.root.constant(0.0))
    start = [*[empty] * (len(body.states) - 1), x, *[empty] * len(body.estimates)]
    written = body.write()
    ends = graph.root.outputs(
        "Loop", len(start), graph.root.constant(plan.rows), graph.root.constant(np.array(True)), *start, body=written
    )
    return graph.model(Symbol(graph.root, ends[len(body.states) - 1]), output, decoder)


class _Body:
    """What happens in one turn: row `i` of the tables, applied to the last states and estimates (oldest first)."""

    def __init__(self, graph: PlanGraph, *, batched_guidance: bool) -> None:
        self.graph, self.plan, self.batched_guidance = graph, graph.plan, batched_guidance
        self.writer = Writer(graph.root)
        self.i = ir.val("i", ir.DataType.INT64, ())
        depth = max(_depth(table) for table in (self.plan.b, self.plan.clip) if table is not None)
        self.states = [self._carried(f"state.{lag}") for lag in reversed(range(_depth(self.plan.a)))]
        self.estimates = [self._carried(f"estimate.{lag}") for lag in reversed(range(1, depth))]

    def _carried(self, name: str) -> Symbol:
        return Symbol(self.writer, ir.val(name, ir.DataType.FLOAT, ("batch", *self.graph.network.state)))

    def write(self) -> ir.Graph:
        writer, x = self.writer, self.states[-1]
        going = ir.val("going", ir.DataType.BOOL, ())
        scales = self.graph.scales()
        skip, out, into = (self.number([s[j] for s in scales]) for j in range(3))
        timestep = writer.op("Gather", self.table(np.array(self.graph.timesteps(), np.float32)), self.i, axis=0)
        estimate = self._times(skip, x) + self._times(out, self._output(self._times(into, x), timestep))
        estimates = [*self.estimates, estimate]
        state = self._state(estimates)
        carried = [*self.states, state][1:] + (estimates[1:] if self.estimates else [])
        outputs = [writer.op("Identity", v) for v in (going, *(symbol.value for symbol in carried))]
        inputs = [self.i, going, *(symbol.value for symbol in (*self.states, *self.estimates))]
        return writer.graph("row", inputs, outputs)

    def _output(self, x: Symbol, timestep: ir.Value) -> Symbol:
        """F of this row, guided where the row is."""
        at, evaluations, scales = At("row", self.i, timestep), self.graph.evaluations, self.plan.guidance
        if (scales == 1).all():
            return guided_output(evaluations, self.writer, x, 1.0, at, batched_guidance=False)
        scale = Symbol(self.writer, self.writer.op("Gather", self.table(scales.astype(np.float32)), self.i, axis=0))
        if (scales != 1).all():
            return guided_output(evaluations, self.writer, x, scale, at, batched_guidance=self.batched_guidance)
        on = self.writer.op("Gather", self.table(scales != 1), self.i, axis=0)
        return guided_where(evaluations, self.writer, x, scale, on, at)

    def _state(self, estimates: Sequence[Symbol]) -> Symbol:
        """x_{k+1}, its terms in the order of `advance`."""
        terms = [(_lagged(self.plan.a, lag), x) for lag, x in _lags(self.states)]
        terms += [(_lagged(self.plan.b, lag), d) for lag, d in _lags(estimates)]
        if self.plan.c.any():
            draws = np.where(self.plan.c != 0, np.cumsum(self.plan.c != 0), 0)  # draw 0 is the start; c is 0 in rows without
            index = self.writer.op("Gather", self.table(draws.astype(np.int64)), self.i, axis=0)
            terms.append((self.plan.c, Symbol(self.writer, self.writer.op("Gather", self.graph.noise, index, axis=1))))
        if self.plan.clip is not None and (top := self.plan.clip_range):
            clipped = ((_lagged(self.plan.clip, lag), d) for lag, d in _lags(estimates))
            terms += [(column, d.clip(-top, top)) for column, d in clipped if column.any()]
        written = [self._times(self.number(list(column)), value) for column, value in terms if column.any()]
        total = written[0]
        for term in written[1:]:
            total = total + term
        return total

    def number(self, column: Sequence[float]) -> float | Symbol:
        """This row's number: a constant where all rows have the same."""
        if len(set(column)) == 1:
            return float(column[0])
        return Symbol(self.writer, self.writer.op("Gather", self.table(np.array(column, np.float32)), self.i, axis=0))

    def table(self, column: np.ndarray) -> ir.Value:
        return self.writer.constant(column)

    @staticmethod
    def _times(factor: float | Symbol, x: Symbol) -> Symbol:
        return scaled(factor, x) if isinstance(factor, float) else factor * x


def _depth(table: Floats) -> int:
    """How many of the last arrays the rows of a triangular table read."""
    rows, columns = np.nonzero(table)
    return 1 + int((rows - columns).max(initial=0))


def _lagged(table: Floats, lag: int) -> Floats:
    """table[k, k - lag] for every row k, 0 where there is no such column."""
    return np.concatenate([np.zeros(lag), np.diagonal(table, -lag)])


def _lags(last: Sequence[Symbol]) -> list[tuple[int, Symbol]]:
    return [(len(last) - 1 - i, value) for i, value in enumerate(last)]

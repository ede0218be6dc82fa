"""A plan and a network as one graph, in three layouts that give the same images.

unrolled: the whole plan as straight nodes; every row is specialised. loop: one ONNX Loop over the plan's tables, the network's
nodes once (twice with guidance); for networks whose unrolled nodes would be too many. step: one guided evaluation, for
whoever walks a plan, and a second graph that finishes the last state.

unrolled and loop take noise (B, draws, C, ...) float32 and the inputs of the signature, and end in its output and in sample
(B, C, ...) float32, the same before rounding or units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import Tensor

from fewstep.artifact.signature import Output, Signature, TensorSpec
from fewstep.exporter.graph.evaluation import At, Evaluations, Network, write
from fewstep.exporter.graph.precision import LayerPrecision
from fewstep.exporter.graph.specialise import Folded, fold
from fewstep.exporter.graph.traced import Traced
from fewstep.exporter.graph.writer import Symbol, Writer
from fewstep.sampling.guidance import mix
from fewstep.sampling.parametrisation import Scales
from fewstep.sampling.plan import Plan, trajectory

__all__ = ["PlanGraph", "TracedDecoder", "guided_output", "guided_where", "postprocess", "scaled", "step", "unroll"]


@dataclass(frozen=True, eq=False)
class TracedDecoder:
    """What turns the last state of a latent model into a sample (B, C, ...), traced.

    Args:
        traced: its nodes.
        weights: by the names of the trace.
    """

    traced: Traced
    weights: Mapping[str, Tensor]


class PlanGraph:
    """The outermost graph of a whole plan: its inputs, the noise it draws, the network's evaluations, its outputs."""

    def __init__(self, network: Network, plan: Plan, layers: LayerPrecision | None) -> None:
        """Raises ValueError for a plan with guidance where no input means "none"."""
        self.root, self.network, self.plan = Writer(), network, plan
        if plan.guided and not network.signature.guidable:
            raise ValueError("this plan is guided but nothing that its network takes means none; use one without guidance")
        given, null = input_values(network.signature, guided=plan.guided)
        self.noise = ir.val("noise", ir.DataType.FLOAT, ("batch", plan.draws, *network.state))
        self.inputs = [self.noise, *given, *null.values()]
        folded = fold(network.traced, network.weights, network.signature.tabled, self.timesteps())
        self.start = self.draw(0)
        self.evaluations = Evaluations(network, self.root, self.start.value, given, null, folded=folded, layers=layers)

    def timesteps(self) -> list[float]:
        return [float(scales.timestep) for scales in self.scales()]

    def scales(self) -> list[Scales]:
        """What turns F into D in every row, and what the network is told."""
        plan, scales = self.plan, self.network.scales
        return [scales(float(sigma)).told(**plan.told(k)) for k, sigma in enumerate(plan.sigmas[:-1])]

    def draw(self, i: int) -> Symbol:
        """The i-th noise tensor of every sample, (B, C, ...)."""
        return Symbol(self.root, self.root.op("Gather", self.noise, self.root.constant(i), axis=1))

    def model(self, x: Symbol, output: Output, decoder: TracedDecoder | None) -> ir.Model:
        """The finished graph, from the last state.

        Args:
            x: the last state, (B, C, ...).
            output: of the signature.
            decoder: of a latent model.
        """
        return self.root.model("sampler", self.inputs, write_output(self.root, x.value, output, decoder))


def unroll(
    network: Network,
    plan: Plan,
    output: Output,
    *,
    decoder: TracedDecoder | None = None,
    batched_guidance: bool = False,
    layers: LayerPrecision | None = None,
) -> ir.Model:
    """The whole plan as a straight graph.

    Args:
        network: traced.
        plan: in its coordinates.
        output: of the signature.
        decoder: of a latent model.
        batched_guidance: guided rows evaluate both conditions in one batch.
        layers: the precision of single layers.

    Raises:
        ValueError: for a plan that does not fit the network.
    """
    graph = PlanGraph(network, plan, layers)
    rows = iter(enumerate(graph.scales()))

    def denoise(x: Symbol, _: float, scale: float = 1.0, **__: float) -> Symbol:
        row, scales = next(rows)
        at = At(f"row_{row}", row, graph.root.constant(float(scales.timestep)))  # unused where all of it is folded
        out = guided_output(graph.evaluations, graph.root, scaled(scales.into, x), scale, at, batched_guidance=batched_guidance)
        return scaled(scales.skip, x) + scaled(scales.out, out)

    x: Symbol = plan.begin(graph.start)
    for made in trajectory(denoise, x, plan, [graph.draw(i) for i in range(1, plan.draws)]):
        x = made.x
        x.value.name = f"state_{made.row + 1}"  # parity is checked state by state under these names
    return graph.model(x, output, decoder)


def guided_output(
    evaluations: Evaluations, writer: Writer, x: Symbol, scale: float | Symbol, at: At, *, batched_guidance: bool
) -> Symbol:
    """F(x), guided unless scale is the number 1. D is linear in F, so mixing outputs of F is mixing estimates.

    Args:
        evaluations: of the network.
        writer: of the graph or the body that it stands in.
        x: (B, C, ...), scaled already.
        scale: of guidance, a number or a value ().
        at: where in the plan.
        batched_guidance: both conditions in one batch.
    """
    if isinstance(scale, float) and scale == 1:
        return Symbol(writer, evaluations.evaluate(writer, x.value, "given", at))
    if batched_guidance:
        both = evaluations.evaluate(writer, writer.op("Concat", x.value, x.value, axis=0), "both", at)
        conditional, unconditional = writer.outputs("Split", 2, both, axis=0, num_outputs=2)
    else:
        conditional, unconditional = (evaluations.evaluate(writer, x.value, kind, at) for kind in ("given", "null"))
    mixed: Symbol = mix(Symbol(writer, conditional), Symbol(writer, unconditional), scale)
    return mixed


def guided_where(evaluations: Evaluations, writer: Writer, x: Symbol, scale: Symbol, where: ir.Value, at: At) -> Symbol:
    """F(x), guided only where a condition () holds at run time: elsewhere the unconditional evaluation does not run.

    The unconditional evaluation stands in the branch of an If, the conditional one outside, where ONNX Runtime optimises it
    best.

    Args:
        evaluations: of the network.
        writer: of the graph or the body that it stands in.
        x: (B, C, ...), scaled already.
        scale: of guidance, a value ().
        where: a truth value ().
        at: where in the plan.
    """
    then, otherwise = (Writer(writer, branch=True) for _ in range(2))
    conditional = evaluations.evaluate(writer, x.value, "given", at)
    unconditional = evaluations.evaluate(then, x.value, "null", at)
    guided = mix(Symbol(then, conditional), Symbol(then, unconditional), Symbol(then, scale.value))
    plain = otherwise.op("Identity", conditional)
    branches = {"then_branch": then.graph("guided", [], [guided.value]), "else_branch": otherwise.graph("plain", [], [plain])}
    return Symbol(writer, writer.op("If", where, **branches))


def step(network: Network, *, layers: LayerPrecision | None = None) -> ir.Model:
    """One evaluation of any row of any plan: x (B, C, ...), scales (4,), guidance_scale () and the inputs -> denoised.

    scales are the four numbers of `network.scales(sigma)`; where guidance_scale is 1 the unconditional evaluation does not run.

    Args:
        network: traced.
        layers: the precision of single layers, for any row.
    """
    writer, guidable = Writer(), network.signature.guidable
    given, null = input_values(network.signature, guided=guidable)
    x = ir.val("x", ir.DataType.FLOAT, ("batch", *network.state))
    scales = ir.val("scales", ir.DataType.FLOAT, (4,))
    scale = ir.val("guidance_scale", ir.DataType.FLOAT, ())
    skip, out, into, timestep = (Symbol(writer, v) for v in writer.outputs("Split", 4, scales, axis=0, num_outputs=4))
    at = At("step", None, writer.op("Reshape", timestep.value, writer.constant([])))
    evaluations = Evaluations(network, writer, x, given, null, folded=Folded({}, {}), layers=layers)
    scaled_x = into * Symbol(writer, x)
    if guidable:
        on = writer.op("Not", writer.op("Equal", scale, writer.constant(1.0)))
        output = guided_where(evaluations, writer, scaled_x, Symbol(writer, scale), on, at)
    else:
        output = guided_output(evaluations, writer, scaled_x, 1.0, at, batched_guidance=False)
    denoised = (skip * Symbol(writer, x) + out * output).value
    denoised.dtype, denoised.shape = ir.DataType.FLOAT, ir.Shape(("batch", *network.state))
    inputs = [x, scales, *([scale] if guidable else []), *given, *null.values()]
    return writer.model("step", inputs, {"denoised": denoised})


def postprocess(state: tuple[int, ...], output: Output, decoder: TracedDecoder | None = None) -> ir.Model:
    """The last state x (B, C, ...) of a plan -> the output and sample: what the step layout leaves to do.

    Args:
        state: (C, ...), without a batch.
        output: of the signature.
        decoder: of a latent model.
    """
    writer = Writer()
    x = ir.val("x", ir.DataType.FLOAT, ("batch", *state))
    return writer.model("postprocess", [x], write_output(writer, x, output, decoder))


def scaled(factor: float, x: Symbol) -> Symbol:
    """factor x, without a node where the factor is 1.

    Args:
        factor: of a plan or a parametrisation.
        x: of any shape.
    """
    return x if factor == 1 else factor * x


def input_values(signature: Signature, *, guided: bool) -> tuple[list[ir.Value], dict[str, ir.Value]]:
    """A graph's inputs and, by the names of these, those that mean "none" and come with every call."""

    def value(spec: TensorSpec) -> ir.Value:
        return ir.val(spec.name, ir.DataType.from_numpy(np.dtype(spec.dtype)), ("batch", *spec.shape))

    nulls = {each.name: value(each.null_tensor) for each in signature.inputs if guided and each.null_tensor}
    return [value(each.tensor) for each in signature.inputs], nulls


def write_output(writer: Writer, x: ir.Value, output: Output, decoder: TracedDecoder | None) -> dict[str, ir.Value]:
    """The signature's output and sample (B, C, ...), from a last state."""
    if decoder is not None:
        (name,) = decoder.traced.inputs
        x = write(writer, decoder.traced, decoder.weights, {decoder.traced.inputs[name]: x}, "decoder")
    sample = writer.op("Identity", x)
    made = _scaled(writer, x, output)
    sample.dtype, sample.shape = ir.DataType.FLOAT, ir.Shape(("batch", *output.shape))
    made.dtype = ir.DataType.from_numpy(np.dtype(output.tensor.dtype))
    made.shape = ir.Shape(("batch", *output.tensor.shape))
    return {output.tensor.name: made, "sample": sample}


def _scaled(writer: Writer, x: ir.Value, output: Output) -> ir.Value:
    """A sample (B, C, *axes) as the output (B, *axes, C), rounded half to even like numpy where its numbers are whole.

    The cast comes last: TensorRT knows uint8 only as an output's type.
    """
    rank, (low, factor, shift, top) = len(output.shape) - 1, output.scaling
    for kind, numbers in (("Sub", low), ("Mul", factor), ("Add", shift)):
        if kind == "Mul" or numbers.any():
            x = writer.op(kind, x, _by_channel(writer, numbers, rank, f"output.{kind.lower()}"))
    if top is not None:
        x = writer.op("Clip", writer.op("Round", x), writer.constant(0.0), writer.constant(top))
    x = writer.op("Transpose", x, perm=[0, *range(2, rank + 2), 1])
    return x if top is None else writer.op("Cast", x, to=ir.DataType.UINT8)


def _by_channel(writer: Writer, numbers: np.ndarray, rank: int, name: str) -> ir.Value:
    """One number for all, or one for every channel."""
    if len(numbers) == 1:
        return writer.constant(float(numbers[0]))
    return writer.constant(numbers.astype(np.float32).reshape(-1, *(1,) * rank), name)

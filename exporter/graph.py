"""A Plan and a denoiser become one ONNX graph.

The network is traced once. Then `sample`, the same loop that runs on numpy and torch, runs on symbols that write ONNX nodes:
each call of the denoiser copies the traced network with its timestep as a constant, all copies share one set of weights,
preconditioning is a few numbers known beforehand, and coefficients that are zero write nothing.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.guidance import guided
from fewstep.manifest import Condition, ImageSpec, Precision
from fewstep.parametrisation import Parametrisation
from fewstep.plan import Plan, sample

__all__ = ["OPSET", "Network", "trace", "unroll", "with_weights"]

OPSET = 20


@dataclass(frozen=True)
class Network:
    """A denoiser's network as ONNX: x (B, C, H, W), timestep (), labels (B,) -> out (B, C, H, W), float32 at the edges."""

    model: ir.Model
    parametrisation: Parametrisation
    image: ImageSpec
    condition: Condition


class _Evaluation(nn.Module):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser.evaluate(x, timestep, *(() if labels is None else (labels,)))


def trace(denoiser: Denoiser, image: ImageSpec, condition: Condition, precision: Precision) -> ir.Model:
    """One network evaluation in `precision`, the casts around it in the graph. Good for every network of its architecture:
    nothing is folded yet, so its initializers are the network's weights by name.
    """
    batch = torch.export.Dim.DYNAMIC
    inputs = [torch.zeros(2, *image.shape), torch.tensor(1.0)]  # a batch traced at 1 would stay 1
    shapes: list[dict[int, object]] = [{0: batch}, {}]
    if condition.kind == "labels":
        inputs.append(torch.zeros(2, dtype=torch.int64))
        shapes.append({0: batch})
    with torch.no_grad(), _quiet():
        module = _Evaluation(_in_precision(denoiser, precision))
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes))
        converted = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=["x", "timestep", "labels"][: len(inputs)],
            output_names=["out"],
            optimize=False,
            verbose=False,
        )
    assert converted is not None
    ClearMetadataAndDocStringPass()(converted.model)  # the exporter's stack traces would be most of an unrolled file
    return converted.model


def with_weights(traced: ir.Model, denoiser: Denoiser, image: ImageSpec, condition: Condition, precision: Precision) -> Network:
    """A traced architecture with the weights of a denoiser, constants folded."""
    model = traced.clone()
    weights = _Evaluation(_in_precision(denoiser, precision)).state_dict()
    initializers = model.graph.initializers
    assert weights.keys() <= initializers.keys(), "the traced architecture is another one"
    for name, weight in weights.items():
        initializers[name].const_value = ir.tensor(weight.detach().numpy(), name=name)
    optimizer.optimize(model)
    return Network(model, denoiser.parametrisation, image, condition)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's remarks on packages it does not need here, and on its own use of deprecated torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def _in_precision(denoiser: Denoiser, precision: Precision) -> Denoiser:
    net = copy.deepcopy(denoiser.net)
    cast = net.half() if precision == "fp16" else net
    return Denoiser(cast, parametrisation=denoiser.parametrisation, patch=denoiser.patch).eval()


@dataclass
class _Writer:
    """The graph under construction: nodes in order, constants and weights by name."""

    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    copies: int = 0

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | float | Sequence[int]) -> ir.Value:
        node = ir.node(kind, inputs, attributes)
        node.outputs[0].name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: float | Sequence[int]) -> ir.Value:
        array = np.array(value, dtype=np.float32 if isinstance(value, float) else np.int64)
        name = f"constant_{array.dtype.name}_{array.tolist()}"
        return self.weight(ir.val(name, const_value=ir.tensor(array, name=name)))

    def weight(self, value: ir.Value) -> ir.Value:
        """The graph's own value for a named tensor, one for all copies that use it."""
        assert value.name is not None
        if value.name not in self.initializers:
            self.initializers[value.name] = ir.val(value.name, const_value=value.const_value)
        return self.initializers[value.name]

    def evaluate(self, model: ir.Model, inputs: Sequence[ir.Value]) -> ir.Value:
        """Append a copy of a traced graph and return its only output."""
        graph = model.graph.clone()
        prefix, self.copies = f"eval_{self.copies}", self.copies + 1
        for old, new in zip(graph.inputs, inputs, strict=True):
            ir.convenience.replace_all_uses_with(old, new)
        for name, value in list(graph.initializers.items()):
            shared = self.weight(value)
            ir.convenience.replace_all_uses_with(value, shared)
            del graph.initializers[name]
        (output,) = graph.outputs
        graph.outputs.clear()
        for node in list(graph):
            node.name = f"{prefix}/{node.name}"
            for result in node.outputs:
                result.name = f"{prefix}/{result.name}"
            graph.remove(node)
            self.nodes.append(node)
        return output


class _Symbol:
    """An array that writes ONNX where numpy would compute; what `sample` and `guided` do with arrays, and no more."""

    __array_ufunc__ = None  # numpy scalars leave the product to __rmul__

    def __init__(self, writer: _Writer, value: ir.Value) -> None:
        self.writer, self.value = writer, value

    def _with(self, kind: str, other: _Symbol | float) -> _Symbol:
        value = other.value if isinstance(other, _Symbol) else self.writer.constant(float(other))
        return _Symbol(self.writer, self.writer.op(kind, self.value, value))

    def __add__(self, other: _Symbol) -> _Symbol:
        return self._with("Add", other)

    def __sub__(self, other: _Symbol) -> _Symbol:
        return self._with("Sub", other)

    def __rmul__(self, factor: float) -> _Symbol:
        return self._with("Mul", factor)


def unroll(network: Network, plan: Plan) -> ir.Model:
    """The whole plan as a straight graph.

    Inputs noise (B, draws, C, H, W) float32 and, with a condition, labels (B,) int64, where label `classes` means "none".
    Outputs images (B, H, W, C) uint8 and sample (B, C, H, W) float32, the same before clipping and rounding.
    """
    writer, image = _Writer(), network.image
    inputs = [ir.val("noise", ir.DataType.FLOAT, ("batch", plan.draws, *image.shape))]
    if network.condition.kind == "labels":
        inputs.append(ir.val("labels", ir.DataType.INT64, ("batch",)))

    def draw(i: int) -> _Symbol:
        index = writer.constant([i])
        axes = writer.constant([1])
        sliced = writer.op("Slice", inputs[0], index, writer.constant([i + 1]), axes)
        return _Symbol(writer, writer.op("Squeeze", sliced, axes))

    def denoise(x: _Symbol, sigma: float, *labels: ir.Value) -> _Symbol:
        scales = network.parametrisation.scales(sigma)
        inputs = [(scales.into * x).value, writer.constant(scales.timestep), *labels]
        out = _Symbol(writer, writer.evaluate(network.model, inputs))
        denoised: _Symbol = scales.skip * x + scales.out * out
        return denoised

    labels = tuple(inputs[1:])
    null = (_null_labels(writer, labels[0], network.condition),) if labels and (plan.weights != 1).any() else ()
    x = float(plan.sigmas[0]) * draw(0)
    noise = [draw(i) for i in range(1, plan.draws)]
    result = sample(guided(denoise, labels, null), x, plan, noise)
    outputs = [_to_bytes(writer, result.value, image), writer.op("Identity", result.value)]
    for output, name, kind, dims in (
        (outputs[0], "images", ir.DataType.UINT8, ("batch", image.height, image.width, image.channels)),
        (outputs[1], "sample", ir.DataType.FLOAT, ("batch", *image.shape)),
    ):
        output.name, output.dtype, output.shape = name, kind, ir.Shape(dims)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=writer.nodes,
        initializers=list(writer.initializers.values()),
        name="sampler",
        opset_imports={"": OPSET},
    )
    model = ir.Model(graph, ir_version=10, producer_name="fewstep")
    RemoveUnusedNodesPass()(model)
    return model


def _null_labels(writer: _Writer, labels: ir.Value, condition: Condition) -> ir.Value:
    return writer.op("Expand", writer.constant([condition.classes]), writer.op("Shape", labels))


def _to_bytes(writer: _Writer, x: ir.Value, image: ImageSpec) -> ir.Value:
    """(B, C, H, W) in [low, high] -> (B, H, W, C) uint8, rounded half to even like numpy.

    The cast comes last: TensorRT knows uint8 only as the type of an output.
    """
    scaled = writer.op("Mul", writer.op("Sub", x, writer.constant(image.low)), writer.constant(255 / (image.high - image.low)))
    clipped = writer.op("Clip", writer.op("Round", scaled), writer.constant(0.0), writer.constant(255.0))
    return writer.op("Cast", writer.op("Transpose", clipped, perm=[0, 2, 3, 1]), to=ir.DataType.UINT8)

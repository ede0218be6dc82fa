"""What depends on the noise level alone is computed at export: a constant for every row of a plan, a table by label else.

Noise embeddings, the layers behind them and the scales and shifts they end in leave the graph this way; a class-conditional
network gathers its row of a small table by label instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from torch import Tensor

from fewstep.artifact.signature import Input
from fewstep.backends.sessions import open_session
from fewstep.exporter.graph.traced import BATCH, OPSET, Traced

__all__ = ["Folded", "fold"]

TIMESTEP = "timestep"
# A folded value has batch size 1 where no label enters, so everything that reads it must broadcast.
BROADCASTS = ("Add", "Sub", "Mul", "Div")
# Tables of labels may add this much to the weights; beyond it only what no label enters is folded.
MAX_TABLE_SHARE = 0.25

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)  # of which no embedding of a large timestep may be made


@dataclass(frozen=True, eq=False)
class Folded:
    """Values known at export, by the value of the trace.

    Args:
        rows: (rows, 1, ...).
        labels: (rows, classes + 1, ...), a line for each and "none".
    """

    rows: Mapping[ir.Value, npt.NDArray[np.generic]]
    labels: Mapping[ir.Value, npt.NDArray[np.generic]]


def fold(traced: Traced, weights: Mapping[str, Tensor], tabled: Input | None, timesteps: Sequence[float]) -> Folded:
    """The values of a traced network that depend on nothing but the timestep, or on it and a label, for each timestep.

    Args:
        traced: a network.
        weights: by the names of the trace.
        tabled: the input with so few values that tables by it can be made, see Signature.
        timesteps: of the rows of a plan.
    """
    alone = frozenset((TIMESTEP, BATCH))
    chosen = _frontier(traced, alone)
    label = tabled.name if tabled else ""
    if tabled and tabled.values:
        with_labels = _frontier(traced, alone | {label})
        found = [v for v in with_labels if label in traced.depends[v]]
        count = len(timesteps) * tabled.values * sum(_numbers(v) for v in found)
        itemsize = np.dtype(found[0].dtype.numpy()).itemsize if found and found[0].dtype else 0
        if count * itemsize <= MAX_TABLE_SHARE * traced.bytes(weights):
            chosen = with_labels
    values = _evaluate(traced, weights, tabled, chosen, timesteps)
    labelled = {v for v in chosen if label in traced.depends[v]}
    return Folded(
        rows={v: array for v, array in values.items() if v not in labelled},
        labels={v: array for v, array in values.items() if v in labelled},
    )


def _frontier(traced: Traced, allowed: frozenset[str]) -> list[ir.Value]:
    """The last values that depend on the timestep and otherwise on `allowed` only, and that broadcast into what reads them."""
    inside = {v for v, names in traced.depends.items() if TIMESTEP in names and names <= allowed and v.producer() is not None}
    settled = False
    while not settled:
        readers = {v: [u.node for u in v.uses() if u.node.outputs[0] not in inside] for v in inside}
        wrong = {v for v, nodes in readers.items() if not all(_broadcasts(traced, v, n) for n in nodes)}
        settled = not wrong
        inside -= wrong
    return [v for v in traced.depends if readers.get(v)]  # in the network's order, so that an export gives the same bytes again


def _broadcasts(traced: Traced, value: ir.Value, reader: ir.Node) -> bool:
    """Whether a node makes the same of a value with batch size 1.

    A value that follows the batch needs another operand that does: else what the node makes has batch size 1 as well.
    """
    alone = traced.depends[reader.outputs[0]] <= {TIMESTEP, BATCH}
    return reader.op_type in BROADCASTS and not (alone and BATCH in traced.depends[value])


def _numbers(value: ir.Value) -> int:
    """Numbers of one image in a value whose first dimension is the batch."""
    assert value.shape is not None
    return prod(d for d in list(value.shape)[1:] if isinstance(d, int))


def _evaluate(
    traced: Traced, weights: Mapping[str, Tensor], tabled: Input | None, outputs: Sequence[ir.Value], timesteps: Sequence[float]
) -> dict[ir.Value, npt.NDArray[np.generic]]:
    """Run the part of a network that leads to `outputs`, in fp32 whatever its precision, for every label at once."""
    if not outputs:
        return {}
    batch = tabled.values if tabled and tabled.values else 1
    label = tabled.name if tabled else ""
    session = open_session(_model(traced, weights, outputs), "of what is folded")
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for given in session.get_inputs():
        if given.name == label:
            feeds[label] = np.arange(batch)
        elif given.name != TIMESTEP:
            feeds[given.name] = np.zeros((batch, *given.shape[1:]), np.float32)
    names = [str(v.name) for v in outputs]
    rows = [session.run(names, feeds | {TIMESTEP: np.array(t, np.float32)}) for t in timesteps]
    values = {}
    for i, value in enumerate(outputs):
        assert value.dtype is not None
        stacked = np.stack([row[i] for row in rows]).astype(value.dtype.numpy())
        values[value] = stacked if label in traced.depends[value] else stacked[:, :1]
    return values


def _model(traced: Traced, weights: Mapping[str, Tensor], outputs: Sequence[ir.Value]) -> bytes:
    nodes = traced.needed(outputs, {})
    wanted = {str(i.name) for node in nodes for i in node.inputs if i is not None}
    mapping: dict[ir.Value, ir.Value] = {}
    inputs, initializers = [], []
    for name, value in traced.inputs.items():
        if name in wanted:
            mapping[value] = ir.val(name, value.dtype, value.shape)
            inputs.append(mapping[value])
    for name, value in traced.constants.items():
        if name in wanted:
            tensor = _promoted(traced.tensor(name, weights))
            mapping[value] = ir.val(name, const_value=tensor)
            initializers.append(mapping[value])
    copies = []
    for node in nodes:
        attributes = dict(node.attributes)
        if node.op_type == "Cast" and ir.DataType(attributes["to"].as_int()) in HALVES:
            attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        copy = ir.Node(
            node.domain, node.op_type, [mapping[i] if i is not None else None for i in node.inputs], attributes,
            num_outputs=len(node.outputs),
        )  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, mapping[old] = old.name, new
        copies.append(copy)
    results = [mapping[v] for v in outputs]
    for value, result in zip(outputs, results, strict=True):
        assert value.dtype is not None, "a trace knows the type of every value"
        result.dtype = ir.DataType.FLOAT if value.dtype in HALVES else value.dtype
    graph = ir.Graph(inputs, results, nodes=copies, initializers=initializers, opset_imports={"": OPSET}, name="folded")
    serialized: bytes = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return serialized


def _promoted(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Half-precision numbers as fp32: the embedding of a large timestep must not be rounded."""
    array = tensor.numpy()
    return ir.tensor(array.astype(np.float32)) if array.dtype in (np.float16, ml_dtypes.bfloat16) else tensor

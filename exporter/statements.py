"""What a graph says of itself, in its bytes and when it runs, against what its bundle's manifest says of it.

Facts that stand twice may come apart: by hand, by a file of another export, by a copy that mixed two. A graph that answers with
images of other classes or another range looks as right as any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import made_of
from fewstep.artifact.manifest import GraphEntry, Layout
from fewstep.artifact.onnx_bytes import GRAPH, MODEL, NODE, OPSET, PROPERTY, TENSOR, Fields, messages, raw
from fewstep.artifact.signature import Output
from fewstep.artifact.spec import Precision
from fewstep.backends.sessions import ERRORS
from fewstep.exporter.facts import FREE, HASHES, MADE_OF, facts

__all__ = [
    "LIMITS",
    "PrecisionLimits",
    "Stated",
    "refuse_other_facts",
    "refuse_other_origin",
    "refuse_other_output",
    "refuse_other_values",
]


class PrecisionLimits(NamedTuple):
    """How far a precision may be from torch's fp32 on golden.npz: largest difference, as in Parity, and smallest PSNR."""

    max_error: float
    min_psnr_db: float


LIMITS: dict[Precision, PrecisionLimits] = {
    "fp32": PrecisionLimits(1e-4, 90),
    "fp16": PrecisionLimits(3e-2, 55),
    "bf16": PrecisionLimits(1.0, 35),
    "int8": PrecisionLimits(1.0, 30),
    "int8-fp16": PrecisionLimits(1.0, 30),
    "fp8": PrecisionLimits(1.0, 30),
}
# Types of tensors, by their numbers in onnx.proto, that tell precisions apart.
INT8, FLOAT16, BFLOAT16, FLOAT8 = 3, 10, 16, 17
TYPES: dict[Precision, set[int]] = {
    "fp32": set(),
    "fp16": {FLOAT16},
    "bf16": {BFLOAT16},
    "int8": {INT8},
    "int8-fp16": {INT8, FLOAT16},
    "fp8": {FLOAT8, FLOAT16},
}
TELLING = {INT8, FLOAT16, BFLOAT16, FLOAT8}


@dataclass
class Stated:
    """What the bytes of an ONNX file say.

    Args:
        producer: of the file.
        opset: of ONNX's standard; 0 where it says none.
        types: of its tensors, by their numbers in onnx.proto, that tell precisions apart.
        loop: whether a node is a Loop.
        step: whether it has the inputs of the step layout.
        both: whether a node evaluates two conditions as one batch.
        metadata: by key.
    """

    producer: str = ""
    opset: int = 0
    types: set[int] = field(default_factory=set)
    loop: bool = False
    step: bool = False
    both: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: bytes) -> Stated:
        """Raises ValueError for bytes that are no ONNX file."""
        stated = cls()
        for kind, found in messages(model):
            if kind in READERS:
                READERS[kind](stated, found)
        return stated

    @property
    def layout(self) -> Layout:
        return "step" if self.step else "loop" if self.loop else "unrolled"


def _read_model(stated: Stated, found: Fields) -> None:
    stated.producer = _text(dict(found).get(2))


def _read_opset(stated: Stated, found: Fields) -> None:
    domain, version = (dict(found).get(number) for number in (1, 2))
    if not domain and isinstance(version, int):
        stated.opset = version


def _read_property(stated: Stated, found: Fields) -> None:
    stated.metadata[_text(dict(found).get(1))] = _text(dict(found).get(2))


def _read_graph(stated: Stated, found: Fields) -> None:
    """Its inputs, of which scales are those of the step layout alone."""
    inputs = [raw(content) for number, content in found if number == 11]
    stated.step |= any(value.startswith(b"\n\x06scales") for value in inputs)  # field 1, 6 bytes long: the name


def _read_node(stated: Stated, found: Fields) -> None:
    stated.loop |= any(number == 4 and raw(content) == b"Loop" for number, content in found)
    stated.both |= any(number == 2 and b".both/" in raw(content) for number, content in found)


def _read_tensor(stated: Stated, found: Fields) -> None:
    stated.types |= {content for number, content in found if number == 2 and isinstance(content, int)} & TELLING


READERS: dict[int, Callable[[Stated, Fields], None]] = {
    MODEL: _read_model,
    OPSET: _read_opset,
    PROPERTY: _read_property,
    GRAPH: _read_graph,
    NODE: _read_node,
    TENSOR: _read_tensor,
}


def _text(content: memoryview | int | None) -> str:
    return raw(content).decode(errors="replace")


def refuse_other_facts(bundle: Bundle, name: str, graph: GraphEntry, stated: Stated) -> None:
    """Raise ValueError where a graph's file says something else of it than the manifest, or its limit is too loose.

    Args:
        bundle: of the graph.
        name: of the graph.
        graph: its entry.
        stated: what its file says.
    """
    stand: list[tuple[str, object, object]] = [
        ("opset", stated.opset, graph.opset),
        ("layout", stated.layout, graph.layout),
    ]
    foreign, missing = stated.types - TYPES[graph.precision], TYPES[graph.precision] - stated.types
    if foreign or (missing and not graph.excluded):
        stand.append(("precision", _precision(stated.types), graph.precision))
    if stated.producer == "fewstep":  # whose nodes have these names
        stand.append(("batched_guidance", stated.both, graph.batched_guidance))
    said = {key: fact for key, fact in facts(bundle.manifest, graph).items() if key not in FREE | HASHES}
    stand += [(key, stated.metadata[key], fact) for key, fact in said.items() if key in stated.metadata]
    for what, found, wanted in stand:
        if found != wanted:
            raise ValueError(
                f"the graph {name!r} has {what} {found} by its file and {wanted} by the manifest; export it again with: "
                f"fewstep export {bundle.root.name}"
            )
    most = LIMITS[graph.precision].max_error
    if graph.limit > most:
        raise ValueError(f"the graph {name!r} may be off by {graph.limit:g}, {graph.precision} by {most:g}; export it again")


def _precision(types: set[int]) -> str:
    """The precision that goes with the types of a file's tensors."""
    return next((name for name, known in TYPES.items() if known == types), "unknown")


def refuse_other_origin(bundle: Bundle, name: str, graph: GraphEntry, stated: Stated) -> None:
    """Raise ValueError where a graph was made with something else than the manifest has now; older ones do not say.

    Args:
        bundle: of the graph.
        name: of the graph.
        graph: its entry.
        stated: what its file says.
    """
    made = made_of(bundle.manifest, graph.denoiser, graph.plan)
    if stated.metadata.get(MADE_OF, made) != made:
        raise ValueError(
            f"the graph {name!r} was made with another network, plan, decoder or signature than the manifest has now; "
            f"export it again with: fewstep export {bundle.root.name}"
        )


def refuse_other_output(name: str, output: Output, made: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError where a graph's output is not what the manifest makes of its sample, by more than rounding.

    Args:
        name: of the graph.
        output: of the signature.
        made: by the graph, output and sample (B, ...).
    """
    expected, tensor = output.scaling.of(made["sample"]), output.tensor.name
    if not np.isfinite(expected).all():
        return  # which the limits tell
    off = np.abs(made[tensor] - expected)
    if (off > output.rounding(expected)).any():
        raise ValueError(
            f"the graph {name!r} makes {tensor} of another range than the manifest's: they are off by up to {off.max():.3g}; "
            "export it again"
        )


def refuse_other_values(
    name: str, tensor: str, values: int, session: ort.InferenceSession, feeds: Mapping[str, npt.NDArray[Any]], output: str
) -> None:
    """Raise ValueError unless a graph takes so many values of a tensor, the last for "none", and no other.

    ONNX Runtime on the CPU refuses an index beyond a table.

    Args:
        name: of the graph.
        tensor: name of an input of finitely many values.
        values: how many, with "none".
        session: of the graph, on the CPU.
        feeds: what it takes, by name, (B, ...).
        output: of the graph, any.
    """
    first = {key: array if key in ("scales", "guidance_scale") else array[:1] for key, array in feeds.items()}
    for value, wanted in ((values - 1, True), (values, False)):
        try:
            session.run([output], first | {tensor: np.full(1, value, np.int64)})
            taken = True
        except ERRORS:
            taken = False
        if taken is not wanted:
            classes = values - 1
            known = f"more than {classes}" if taken else f"fewer than {classes}"
            raise ValueError(
                f"the graph {name!r} knows {known} classes by {tensor}, the manifest says {classes}; export it again"
            )

"""What an ONNX graph says about itself, read before TensorRT sees it and without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry, Layout
from fewstep.artifact.spec import Precision
from fewstep.system.extras import install

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphFacts", "graph_facts", "graphs_in"]

_STANDARD = ("", "ai.onnx")
_DEQUANTIZE = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class GraphFacts:
    """One graph of a bundle, as its file and the manifest have it.

    Args:
        name: of the graph.
        precision, layout: by the manifest.
        opset: by its file.
        declared_opset: by the manifest.
        known_opset: the newest that the installed onnx knows.
        graph_bytes: of its file.
        data_bytes: of the weights beside it.
        fixed_batch: where no input begins with a dynamic dimension.
        dynamic: "input: dimension" of sizes other than the batch.
        asymmetric, wide_integers, e5m2: nodes quantized with a zero point, to 32 bits, to that type.
        foreign: operators outside the standard.
        loops, open_loops: Loop nodes, and those without their condition input.
        stray_data: files with weights that the manifest has no hash for.
        golden_batch: samples of golden.npz in one call; 0 without a reference.
    """

    name: str
    precision: Precision
    layout: Layout = "unrolled"
    opset: int = 20
    declared_opset: int = 20
    known_opset: int = 28  # the newest that the installed onnx knows
    graph_bytes: int = 0
    data_bytes: int = 0
    fixed_batch: int | None = None
    dynamic: tuple[str, ...] = ()  # "input: dimension", other than the batch
    asymmetric: tuple[str, ...] = ()
    wide_integers: tuple[str, ...] = ()  # quantized to 32 bits, as ONNX Runtime does with biases
    e5m2: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()
    open_loops: tuple[str, ...] = ()  # without their condition input
    stray_data: tuple[str, ...] = ()
    golden_batch: int = 0


def graph_facts(bundle: Bundle, name: str) -> GraphFacts:
    """Read a graph of a bundle; its files are checked against their hashes first.

    Args:
        bundle: with the graph.
        name: of the graph.

    Raises:
        ValueError: for a graph there is not, when a file is not what was saved or no ONNX graph, or when the package onnx is
            missing.
    """
    entry: GraphEntry = bundle.pick("graph", name, bundle.manifest.graphs)
    models = _load(bundle, name, entry)
    model = models[0]
    import onnx  # after _load, which says how to install it

    graphs = [graph for m in models for graph in graphs_in(m.graph)]
    nodes = [node for graph in graphs for node in graph.node]
    tensors = {t.name: t for graph in graphs for t in graph.initializer}
    tensors |= {n.output[0]: a.t for n in nodes if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    zeros = [(n, tensors[n.input[2]]) for n in nodes if n.op_type in _DEQUANTIZE and _has(n, 2) and n.input[2] in tensors]
    loops = [n for n in nodes if n.op_type == "Loop"]
    sizes = bundle.manifest.files
    return GraphFacts(
        name=name,
        precision=entry.precision,
        layout=entry.layout,
        opset=next((o.version for o in model.opset_import if o.domain in _STANDARD), 0),
        declared_opset=entry.opset,
        known_opset=onnx.defs.onnx_opset_version(),
        graph_bytes=sizes[entry.file].bytes,
        data_bytes=sum(sizes[path].bytes for path in entry.data),
        fixed_batch=_fixed_batch(model.graph),
        dynamic=tuple(_dynamic(model.graph)),
        asymmetric=_names(n for n, zero in zeros if _nonzero(zero)),
        wide_integers=_names(n for n, zero in zeros if zero.data_type == onnx.TensorProto.INT32),
        e5m2=_names(n for n, zero in zeros if zero.data_type == onnx.TensorProto.FLOAT8E5M2),
        foreign=tuple(sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in _STANDARD})),
        loops=_names(loops),
        open_loops=_names(n for n in loops if not _has(n, 1)),
        stray_data=tuple(_stray(entry, [t for g in graphs for t in g.initializer] + [a.t for n in nodes for a in n.attribute])),
        golden_batch=_golden_batch(bundle, entry),
    )


def _load(bundle: Bundle, name: str, entry: GraphEntry) -> list[onnx.ModelProto]:
    """The graph, and the one of a step layout that ends in images."""
    try:
        import onnx
    except ImportError:
        raise ValueError(f"building engines needs onnx; {install('rtx')}") from None
    paths = {path: bundle.file(path) for path in entry.paths}
    try:
        return [onnx.load(paths[path], load_external_data=False) for path in (entry.file, entry.postprocess) if path]
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise ValueError(f"the graph {name!r} is not a readable ONNX file ({error}); export it again") from None


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs_in(inner)


def _names(nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    return tuple(node.name or node.output[0] for node in nodes)


def _has(node: onnx.NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _nonzero(tensor: onnx.TensorProto) -> bool:
    from onnx import numpy_helper

    return not tensor.external_data and bool(numpy_helper.to_array(tensor).astype("float32").any())


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        d.dim_param if d.dim_param or not d.HasField("dim_value") else d.dim_value for d in value.type.tensor_type.shape.dim
    ]


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    weights = {t.name for t in graph.initializer}
    return [i for i in graph.input if i.name not in weights]


def _fixed_batch(graph: onnx.GraphProto) -> int | None:
    """The batch of a graph none of whose inputs begins with a dynamic dimension."""
    first = [dims[0] for i in _inputs(graph) if (dims := _dims(i))]
    return first[0] if first and all(isinstance(d, int) for d in first) and isinstance(first[0], int) else None


def _dynamic(graph: onnx.GraphProto) -> Iterator[str]:
    for value in _inputs(graph):
        for i, dim in enumerate(_dims(value)):
            if i and isinstance(dim, str):
                yield f"{value.name}: {dim or i}"


def _golden_batch(bundle: Bundle, entry: GraphEntry) -> int:
    """Images per call of the parity check; 0 without a reference for the graph's plan."""
    if entry.plan is None:
        return 0
    references = bundle.references(entry.plan)
    return len(references[entry.plan]["noise"]) if entry.plan in references else 0


def _stray(entry: GraphEntry, tensors: list[onnx.TensorProto]) -> Iterator[str]:
    """External files that are none of those the manifest has a hash for."""
    allowed = {str(PurePosixPath(path).relative_to(PurePosixPath(entry.file).parent)) for path in entry.data}
    yield from sorted(
        {item.value for t in tensors for item in t.external_data if item.key == "location" and item.value not in allowed}
    )

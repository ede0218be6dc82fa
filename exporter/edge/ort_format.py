"""ONNX Runtime's own .ort format: graphs for phones and for builds of ONNX Runtime with few operators.

Optimised to the level "extended" in the style "fixed": constants folded and nodes fused once, here, into what the kernels
of every CPU build know; nothing is left to optimise on the device. Layouts that belong to one kind of processor (NCHWc) are
kept out. required_operators.config lists what a reduced build must hold (ONNX Runtime: build.sh --minimal_build
--include_ops_by_config). https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry
from fewstep.backends.sessions import open_session
from fewstep.exporter.edge.probe import probe
from fewstep.exporter.edge.sizes import Deviation, PackagePart, Report, installed

__all__ = ["OPERATORS", "write_ort"]

OPERATORS = "required_operators.config"
MAX_BYTES = (1 << 31) - 1  # flatbuffers address no more


def write_ort(bundle: Bundle, graphs: Sequence[str], directory: Path) -> Report:
    """Write each graph as .ort and the operators they need, and run every one against its ONNX form.

    Args:
        bundle: with the graphs.
        graphs: by name, of whole plans; one or more.
        directory: of the target.

    Raises:
        ValueError: for a graph of 2 GB or more, or one that differs by more than its limit in the bundle.
    """
    parts: list[PackagePart] = []
    deviations: list[Deviation] = []
    paths = []
    for name in graphs:
        graph: GraphEntry = bundle.manifest.graphs[name]
        size = sum(bundle.manifest.files[path].bytes for path in graph.paths)
        if size > MAX_BYTES:
            raise ValueError(f"an .ort file holds less than 2 GB, {name!r} has {size / 1e9:.1f} GB; package fp16 or int8")
        expected = probe(bundle, name)
        path = directory / f"{name}.ort"
        _convert(bundle.file(graph.file), path)
        made = open_session(path, repr(name)).run(expected.outputs, expected.feeds)
        deviations.append(Deviation("ort", name, graph.precision, *expected.differs(*made)).within(graph.limit))
        weights = _weights(path)
        parts += [
            PackagePart("ort", f"{name}: graph", path.stat().st_size - weights),
            PackagePart("ort", f"{name}: weights", weights),
        ]
        paths.append(path)
    _write_operators(paths, directory / OPERATORS)
    parts += [PackagePart("ort", OPERATORS, (directory / OPERATORS).stat().st_size)]
    return Report([*parts, *installed("ort", ["onnxruntime"])], deviations)


def _convert(source: Path, target: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"])


def _weights(path: Path) -> int:
    """Bytes of the initializers of an .ort file."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    graph = InferenceSession.GetRootAs(path.read_bytes(), 0).Model().Graph()
    return sum(graph.Initializers(i).RawDataLength() for i in range(graph.InitializersLength()))


def _write_operators(paths: Sequence[Path], target: Path) -> None:
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    create_config_from_models(paths, target, enable_type_reduction=True)
    # The tool writes where the files lay when it ran; what matters is which they are.
    target.write_text(target.read_text("utf-8").replace(f"{paths[0].parent}/", ""), "utf-8")

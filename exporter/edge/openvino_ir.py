"""OpenVINO's IR: graph (.xml) and weights (.bin) for Intel processors and their GPUs and NPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry
from fewstep.exporter.edge.probe import Probe, probe
from fewstep.exporter.edge.sizes import Deviation, PackagePart, Report, installed
from fewstep.system.extras import install

__all__ = ["write_openvino"]


def write_openvino(bundle: Bundle, graphs: Sequence[str], directory: Path) -> Report:
    """Write each graph as IR without rounding its weights, and run it on the CPU in f32 and in OpenVINO's default.

    The default is bf16 on processors that have it, with visibly larger error: set INFERENCE_PRECISION_HINT to f32 where samples
    must equal those of the other targets.

    Args:
        bundle: with the graphs.
        graphs: by name, of whole plans.
        directory: of the target.

    Raises:
        ValueError: without OpenVINO, for a graph it refuses, or one whose f32 result differs by more than its limit in the
            bundle.
    """
    openvino = _load()
    core = openvino.Core()
    parts: list[PackagePart] = []
    deviations: list[Deviation] = []
    for name in graphs:
        graph: GraphEntry = bundle.manifest.graphs[name]
        expected = probe(bundle, name)
        path = directory / f"{name}.xml"
        try:
            # Not convert_model, which does the same and reports its use over the network.
            openvino.save_model(core.read_model(bundle.file(graph.file)), path, compress_to_fp16=False)
            exact = _deviation(core, path, name, expected, {"INFERENCE_PRECISION_HINT": "f32"})
            default = _deviation(core, path, name, expected, {})
        except RuntimeError as error:
            raise ValueError(f"OpenVINO {openvino.__version__} refuses the graph {name!r}: {error}") from None
        deviations += [exact.within(graph.limit), default]
        parts += [
            PackagePart("openvino", f"{name}: graph", path.stat().st_size),
            PackagePart("openvino", f"{name}: weights", path.with_suffix(".bin").stat().st_size),
        ]
    return Report([*parts, *installed("openvino", ["openvino"])], deviations)


def _load() -> Any:
    try:
        import openvino
    except ImportError:
        raise ValueError(f"the target openvino needs OpenVINO; {install('openvino')}") from None
    return openvino


def _deviation(core: Any, path: Path, name: str, expected: Probe, settings: dict[str, str]) -> Deviation:
    compiled = core.compile_model(path, "CPU", settings)
    outputs = compiled(expected.feeds)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    setting = precision if settings else f"default ({precision})"
    return Deviation("openvino", name, setting, *expected.differs(*(outputs[tensor] for tensor in expected.outputs)))

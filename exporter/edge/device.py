"""A bundle trimmed to what a device needs to build its engine and prove it, without torch: graphs, plans, golden, card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.bundle import Bundle, Draft
from fewstep.card import CARD
from fewstep.exporter.edge.sizes import Part, Report, graph_parts, installed
from fewstep.exporter.graph.metadata import lineage
from fewstep.manifest import GraphEntry, Manifest

__all__ = ["write_device"]

GOLDEN = "golden.npz"


def write_device(bundle: Bundle, plans: Sequence[str], graphs: Sequence[str], directory: Path) -> Report:
    """Write directory/NAME.bundle with these plans and graphs, and of the networks their descriptions alone.

    On the device: fewstep build NAME.bundle && fewstep check NAME.bundle. Raises ValueError where a file was altered.
    """
    source = bundle.manifest
    root = directory / bundle.root.name
    with Draft.create(root, image=source.image, condition=source.condition) as draft:
        _describe(draft.manifest, source, plans, graphs)
        files = [path for name in graphs for path in source.graphs[name].paths]
        for file in [*files, *([CARD] if CARD in source.files else [])]:
            shutil.copyfile(bundle.file(file), draft.new(file))
        if GOLDEN in source.files:
            kept = {*plans, *draft.manifest.networks}
            with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
                arrays = {key: golden[key] for key in golden.files if key.split("/")[0] in kept}
            np.savez_compressed(draft.new(GOLDEN), allow_pickle=False, **arrays)
    return _report(Bundle.load(root), graphs)


def _describe(target: Manifest, source: Manifest, plans: Sequence[str], graphs: Sequence[str]) -> None:
    target.name = source.name
    target.plans = {name: source.plans[name] for name in plans}
    target.graphs = {name: source.graphs[name] for name in graphs}
    target.default = source.default if source.default in plans else plans[0]
    networks = {p.network for p in target.plans.values()} | {g.network for g in target.graphs.values()}
    target.networks = {name: source.networks[name].model_copy(update={"directory": None}) for name in sorted(networks)}
    origins = {origin for network in networks for origin in lineage(source, network)}  # whose license theirs may be
    absent = {*source.plans, *source.networks} - {*plans, *origins}
    target.provenance = {key: value for key, value in source.provenance.items() if key not in absent}


def _report(bundle: Bundle, graphs: Sequence[str]) -> Report:
    report = Report()
    for name in graphs:
        graph: GraphEntry = bundle.manifest.graphs[name]
        data = bundle.file(graph.data) if graph.data else None
        report += Report(graph_parts("device", name, bundle.file(graph.file), data=data))
    rest = sum(p.stat().st_size for p in bundle.root.rglob("*") if p.is_file()) - sum(part.bytes for part in report.parts)
    runtime = installed("device", ["onnxruntime", "tensorrt", "polygraphy"])
    return report + Report([Part("device", "manifest, references, card", rest), *runtime])

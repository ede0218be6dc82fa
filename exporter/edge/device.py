"""A bundle trimmed to what a device needs to build its engine and prove it, without torch: graphs, plans, golden, card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fewstep.artifact.bundle import CARD, Bundle, Draft
from fewstep.artifact.digests import component_digest
from fewstep.artifact.golden import GOLDEN, write_golden
from fewstep.artifact.manifest import Manifest
from fewstep.exporter.edge.sizes import PackagePart, Report, graph_parts, installed

__all__ = ["write_device"]


def write_device(bundle: Bundle, plans: Sequence[str], graphs: Sequence[str], directory: Path) -> Report:
    """Write directory/NAME.bundle with these plans and graphs, and of the components their descriptions alone.

    On the device: fewstep build NAME.bundle && fewstep check NAME.bundle.

    Args:
        bundle: whose files are copied.
        plans: by name, one or more; the default one stays it where it is among them, else the first is.
        graphs: by name.
        directory: of the target.

    Raises:
        ValueError: where a file was altered.
    """
    source = bundle.manifest
    root = directory / bundle.root.name
    with Draft.create(root, source.signature, state=source.state) as draft:
        _describe(draft.manifest, source, plans, graphs)
        for file in dict.fromkeys(path for name in graphs for path in source.graphs[name].paths):  # graphs may share weights
            shutil.copyfile(bundle.file(file), draft.new(file))
        if bundle.card:
            shutil.copyfile(bundle.card, draft.new(CARD))
        if references := bundle.references(*plans):
            write_golden(draft.new(GOLDEN), references)
    return _report(Bundle.load(root), graphs)


def _describe(target: Manifest, source: Manifest, plans: Sequence[str], graphs: Sequence[str]) -> None:
    """What stays of the manifest; of weights that do not, what they were."""
    target.name, target.card_sha256 = source.name, source.card_sha256
    target.plans = {name: source.plans[name] for name in plans}
    target.graphs = {name: source.graphs[name] for name in graphs}
    target.default = source.default if source.default in plans else plans[0]
    walked = {p.denoiser for p in target.plans.values()} | {g.denoiser for g in target.graphs.values()}
    unused = source.denoisers.keys() - walked
    kept = {name: entry for name, entry in source.components.items() if name not in unused}
    target.components = {name: entry.model_copy(deep=True) for name, entry in kept.items()}
    for name, entry in target.components.items():
        if entry.directory:
            entry.directory, entry.digest = None, component_digest(source, name)
    of = source.records
    target.records.components = {name: of.components[name] for name in kept if name in of.components}
    target.records.plans = {name: of.plans[name] for name in plans if name in of.plans}


def _report(bundle: Bundle, graphs: Sequence[str]) -> Report:
    report = Report()
    for name in graphs:
        report += Report(graph_parts("device", name, bundle.file(bundle.manifest.graphs[name].file)))
    for path in dict.fromkeys(path for name in graphs for path in bundle.manifest.graphs[name].data):
        report += Report([PackagePart("device", f"{Path(path).name}: weights", bundle.file(path).stat().st_size)])
    rest = sum(p.stat().st_size for p in bundle.root.rglob("*") if p.is_file()) - sum(part.bytes for part in report.parts)
    runtime = installed("device", ["onnxruntime", "tensorrt", "polygraphy"])
    return report + Report([PackagePart("device", "manifest, references, card", rest), *runtime])

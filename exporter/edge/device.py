"""A bundle trimmed to what a device needs to build its engine and prove it, without torch: graphs, plans, golden, card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fewstep.artifact.bundle import CARD, Bundle, Draft
from fewstep.artifact.digests import decoder_digest, network_digest
from fewstep.artifact.golden import GOLDEN, write_golden
from fewstep.artifact.manifest import GraphEntry, Manifest
from fewstep.exporter.edge.sizes import Part, Report, graph_parts, installed

__all__ = ["write_device"]


def write_device(bundle: Bundle, plans: Sequence[str], graphs: Sequence[str], directory: Path) -> Report:
    """Write directory/NAME.bundle with these plans and graphs, and of the networks their descriptions alone.

    On the device: fewstep build NAME.bundle && fewstep check NAME.bundle. Raises ValueError where a file was altered.
    """
    source = bundle.manifest
    root = directory / bundle.root.name
    with Draft.create(root, image=source.image, condition=source.condition) as draft:
        _describe(draft.manifest, source, plans, graphs)
        for file in [path for name in graphs for path in source.graphs[name].paths]:
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
    networks = sorted({p.network for p in target.plans.values()} | {g.network for g in target.graphs.values()})
    target.networks = {name: source.networks[name].model_copy(deep=True) for name in networks}
    for name, entry in target.networks.items():
        if entry.directory:
            entry.directory, entry.digest = None, network_digest(source, name)
    target.latent = source.latent.model_copy() if source.latent else None
    if target.latent and target.latent.directory:
        target.latent.directory, target.latent.digest = None, decoder_digest(source)
    of = source.provenance
    target.provenance.networks = {name: of.networks[name] for name in networks if name in of.networks}
    target.provenance.plans = {name: of.plans[name] for name in plans if name in of.plans}


def _report(bundle: Bundle, graphs: Sequence[str]) -> Report:
    report = Report()
    for name in graphs:
        graph: GraphEntry = bundle.manifest.graphs[name]
        data = bundle.file(graph.data) if graph.data else None
        report += Report(graph_parts("device", name, bundle.file(graph.file), data=data))
    rest = sum(p.stat().st_size for p in bundle.root.rglob("*") if p.is_file()) - sum(part.bytes for part in report.parts)
    runtime = installed("device", ["onnxruntime", "tensorrt", "polygraphy"])
    return report + Report([Part("device", "manifest, references, card", rest), *runtime])

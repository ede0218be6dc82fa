"""TensorRT engines from a bundle's graphs, kept while nothing they depend on changes.

Explained first, then built in a process of its own, in one of three flavours through one path; see `flavour`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import EngineEntry, EngineKey, GraphEntry
from fewstep.exporter.engine.building import run
from fewstep.exporter.engine.cases import EngineCase, EngineFinding, EngineSettings
from fewstep.exporter.engine.explain import explain
from fewstep.exporter.engine.facts import graph_facts
from fewstep.exporter.engine.flavour import Flavour, choose
from fewstep.exporter.engine.worker import Request
from fewstep.system.machine import Machine, this_machine
from fewstep.system.progress import Meter, unseen

__all__ = ["Job", "Miss", "build", "build_engines", "prepare", "refuse"]


@dataclass(frozen=True)
class Miss:
    """A part of the key that differs from the engine there is.

    Args:
        part: a field of EngineKey.
        old: of the engine there is.
        new: of the one that is wanted.
    """

    part: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Job:
    """An engine that is wanted.

    Args:
        name: of the engine.
        case: what it is built from and for.
        entry: the graph, in the manifest.
        key: what it will depend on.
        findings: what the table says about the case.
        old: the engine of this name that there is.
    """

    name: str
    case: EngineCase
    entry: GraphEntry
    key: EngineKey
    findings: list[EngineFinding]
    old: EngineEntry | None

    @property
    def misses(self) -> list[Miss]:
        """What an engine of this name was built with that is different now; empty where there is none."""
        if self.old is None:
            return []
        pairs = ((part, getattr(self.old.key, part), getattr(self.key, part)) for part in EngineKey.model_fields)
        return [Miss(part, old, new) for part, old, new in pairs if old != new]

    @property
    def up_to_date(self) -> bool:
        return self.old is not None and not self.misses

    def report(self, built: Bundle | None) -> dict[str, Any]:
        """All of it as plain data. built: the bundle after the build, which then says what came out."""
        status = "up to date" if self.up_to_date else "built" if built else "to build"
        plain: dict[str, Any] = {"graph": self.case.graph.name, "status": status, "key": self.key.model_dump(mode="json")}
        plain |= {"misses": [asdict(m) for m in self.misses], "findings": [asdict(f) for f in self.findings]}
        if built:
            entry: EngineEntry = built.manifest.engines[self.name]
            plain |= entry.model_dump(mode="json", exclude={"key"}) | {"bytes": built.manifest.files[entry.file].bytes}
        return plain


def build_engines(
    bundle: Bundle,
    graphs: Sequence[str],
    *,
    settings: EngineSettings | None = None,
    flavour: Flavour | None = None,
    meter: Meter = unseen,
) -> list[Job]:
    """`prepare` and `build` in one: engines for the named graphs, with the best flavour here unless one is given.

    Args:
        bundle: with the graphs; it gets the engines.
        graphs: by name.
        settings: tuned for the flavour's own batches unless given.
        flavour: the best one here unless given.
        meter: shows progress.

    Returns:
        What was wanted of each, as it was before the build.

    Raises:
        ValueError: as `prepare` and `build` do, and where nothing here builds engines.
    """
    machine = this_machine()
    flavour = flavour or choose(None, machine)[0]
    jobs = prepare(bundle, graphs, settings or EngineSettings(batch=flavour.batch), flavour, machine)
    build(bundle, jobs, meter=meter)
    return jobs


def prepare(bundle: Bundle, graphs: Sequence[str], settings: EngineSettings, flavour: Flavour, machine: Machine) -> list[Job]:
    """Read the named graphs and say for each what would be built and what speaks against it. Builds nothing.

    Args:
        bundle: with the graphs.
        graphs: by name; each counts once.
        settings: of all of them.
        flavour: that is to build them.
        machine: this one.

    Raises:
        ValueError: for a graph there is not or whose files are not what was saved.
    """
    jobs = []
    for graph in dict.fromkeys(graphs):
        case = EngineCase(flavour, settings, graph_facts(bundle, graph), machine)
        entry = bundle.manifest.graphs[graph]
        # Native engines are for the GPU that builds them; a bundle may hold one for each.
        gpu = () if flavour.rtx else tuple(f"sm{sm}" for sm in case.architectures)
        name = ".".join((graph, flavour.extra, *gpu))
        old = bundle.manifest.engines.get(name)
        jobs.append(Job(name, case, entry, _key(bundle, entry, case), explain(case), old))
    return jobs


def refuse(jobs: Sequence[Job]) -> None:
    """Raise ValueError with the first finding that stops a job, if there is one."""
    for job in jobs:
        for finding in job.findings:
            if finding.severity == "stops":
                raise ValueError(finding.sentence)


def build(bundle: Bundle, jobs: Sequence[Job], *, meter: Meter = unseen) -> None:
    """Build the engines that are not up to date and put them into the bundle, all or none.

    KeyboardInterrupt ends it within seconds, the bundle as it was.

    Args:
        bundle: of the jobs.
        jobs: what `prepare` gave.
        meter: shows the progress of each.

    Raises:
        ValueError: the bundle as it was, when the table stops a job, when TensorRT refuses a graph, and when a layer would not
            compute in the graph's precision.
    """
    refuse(jobs)
    for job in jobs:
        if job.up_to_date and job.old is not None:
            for path in job.old.paths:
                bundle.file(path)
    stale = [job for job in jobs if not job.up_to_date]
    if not stale:
        return
    with bundle.edit() as draft:
        for job in stale:
            draft.manifest.engines[job.name] = _build(bundle, draft, job, meter)


def _key(bundle: Bundle, entry: GraphEntry, case: EngineCase) -> EngineKey:
    sha256 = {path: bundle.manifest.files[path].sha256 for path in entry.paths}
    settings, native = case.settings, not case.flavour.rtx
    return EngineKey(
        graph_sha256=sha256[entry.file],
        data_sha256=[sha256[path] for path in entry.data],
        postprocess_sha256=sha256[entry.postprocess] if entry.postprocess else None,
        flavour=case.flavour.name,
        version=case.flavour.version or "",
        targets=list(case.architectures),
        gpu=case.machine.gpu if native else None,
        precision=entry.precision,
        profiles=settings.profiles,
        workspace_bytes=settings.workspace_bytes,
        level=settings.level,
        flags=sorted(set(settings.flags)),
    )


def _build(bundle: Bundle, draft: Draft, job: Job, meter: Meter) -> EngineEntry:
    start = time.monotonic()
    file = f"engines/{job.name}.engine"
    result = _build_file(bundle, draft, job, job.entry.file, file, meter)
    postprocess = None
    if job.entry.postprocess:
        postprocess = f"engines/{job.name}.postprocess.engine"
        _build_file(bundle, draft, job, job.entry.postprocess, postprocess, meter)
    seconds = round(time.monotonic() - start, 3)
    return EngineEntry(file=file, postprocess=postprocess, graph=job.case.graph.name, key=job.key, seconds=seconds, **result)


def _build_file(bundle: Bundle, draft: Draft, job: Job, graph: str, engine: str, meter: Meter) -> dict[str, Any]:
    """One ONNX file to one engine file; its layers by precision, and whether the engine was inspected."""
    settings, flavour = job.case.settings, job.case.flavour
    request = Request(
        flavour=flavour.name,
        strongly_typed=flavour.asks_for_strong_typing,
        graph=str(bundle.file(graph)),
        engine=str(draft.new(engine)),
        profiles=settings.profiles,
        targets=list(settings.targets),
        precision=job.entry.precision if graph == job.entry.file else None,
        excluded=job.entry.excluded,
        inspect=job.case.machine.sm is not None,
        workspace_bytes=settings.workspace_bytes,
        level=settings.level,
        timing_cache=str(settings.timing_cache.absolute()) if settings.timing_cache else None,
        flags=settings.flags,
    )
    with meter(job.name if graph == job.entry.file else f"{job.name} (postprocess)") as report:
        try:
            return run(request, report)
        except ValueError as error:
            raise ValueError(f"{flavour.title} refuses the graph {job.case.graph.name!r}: {error}") from None

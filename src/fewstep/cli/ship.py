"""Verbs that turn them into what ships: export, build, package."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from fewstep.artifact.adopt import mismatch
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import EngineFlag, Layout
from fewstep.artifact.spec import Precision, refuse_other_words
from fewstep.cli.app import BundlePath, Json, app, editable, finish, precisions, size, whole_numbers
from fewstep.cli.new_plan import by_scheduler, by_solver, with_plan
from fewstep.cli.verb import verb
from fewstep.sampling.guidance import Guidance
from fewstep.system.console import meter, say, show, table, track
from fewstep.system.places import check_file

if TYPE_CHECKING:
    from fewstep.exporter.engine.build import Job

__all__ = ["build", "export", "package"]

PANEL = "Export and build"


@verb(app, panel=PANEL)
def export(
    bundle: BundlePath,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan of the bundle; repeat for more.", show_default="the default")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Or a new teacher plan: ddim, heun, dpmpp_2m, spndm, ipndm.", show_default=False)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Or of a class of diffusers, such as UniPCMultistepScheduler.", show_default=False)
    ] = None,
    scheduler_config: Annotated[
        Path | None,
        typer.Option(help="Its settings, a JSON file.", show_default="those the network was imported with", hidden=True),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the new plan.")] = 10,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the new plan; 1 is none.")] = 1.0,
    lo: Annotated[float, typer.Option(help="No guidance at noise levels up to this.")] = 0.0,
    hi: Annotated[float, typer.Option(help="No guidance at noise levels above this.")] = inf,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="by what it is")] = None,
    precision: Annotated[str, typer.Option(help=f"Of {', '.join(get_args(Precision))}, commas between.")] = "fp32,fp16",
    layout: Annotated[
        list[str] | None, typer.Option(help="unrolled, loop or step; repeat for more.", show_default="by size")
    ] = None,
    batched_guidance: Annotated[
        bool | None,
        typer.Option(
            "--batched-guidance/--two-passes",
            help="Guided rows as one batch of twice the size.",
            show_default="measured here",
            hidden=True,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write plans as ONNX graphs: network, sampler and guidance in one file that ends in uint8 images or arrays in their units.

    int8 is for CPUs, int8-fp16 and fp8 for GPUs; all three collect the plan's ranges first where `quantize` did not.
    """
    from fewstep.exporter.export import export_graphs, refuse_layouts

    loaded, wanted = editable(bundle), precisions(precision)
    layouts = [cast(Layout, name) for name in layout or []]
    refuse_other_words("layout", layouts, get_args(Layout))
    described = (steps, guidance, lo, hi, name, scheduler_config) != (10, 1.0, 0.0, inf, None, None)
    if sum(map(bool, (plan, solver, scheduler))) > 1:
        raise ValueError("--plan names a plan there is, --solver or --scheduler make a new one; give one of the three")
    if described and not (solver or scheduler):
        raise ValueError(
            "--steps, --guidance, --lo, --hi and --name describe a new plan; say of which --solver or --scheduler it is to be"
        )
    if scheduler_config and not scheduler:
        raise ValueError("--scheduler-config has the settings of a --scheduler; name one")
    if not (plan or solver or scheduler) and loaded.manifest.default is None:
        raise ValueError(f"{bundle} has no default plan; name one with --plan, or a solver with --solver")
    refuse_layouts(layouts, wanted)
    if solver or scheduler:
        asked = Guidance(guidance, lo, hi)
        made = by_scheduler(loaded, scheduler, scheduler_config, steps, asked) if scheduler else None
        entry, usual = made or by_solver(loaded, cast(str, solver), steps, asked)
        name = usual if name is None else name
        loaded, plan = with_plan(loaded, entry, name), [name]
    plans = plan or [cast(str, loaded.manifest.default)]
    for warning in filter(None, (mismatch(loaded, name) for name in plans)):
        say(f"warning: {warning}")
    loaded = _with_ranges(loaded, plans, wanted)
    exported = export_graphs(loaded, plans, wanted, layouts=layouts, batched_guidance=batched_guidance, report=say, track=track)
    known = loaded.manifest.graphs
    new = {key: g for key, g in exported.manifest.graphs.items() if known.get(key) != g or g.plan in plans}
    new = {key: g for key, g in new.items() if g.precision in wanted and (not layouts or g.layout in layouts)}
    for graph in new.values():
        show(f"{bundle / graph.file}  {size(sum(exported.manifest.files[path].bytes for path in graph.paths))}")
    files = {key: graph.file for key, graph in new.items()}
    then = f"fewstep generate {bundle} --plan {plans[-1]} --precision {wanted[0]} --out grid.png"
    if not loaded.manifest.signature.finite or wanted[0] == "bf16":
        then = f"fewstep check {bundle}"  # what generate cannot make here
    finish({"bundle": str(bundle), "graphs": files}, as_json, then)


def _with_ranges(bundle: Bundle, plans: Sequence[str], wanted: Sequence[Precision]) -> Bundle:
    """Collect the ranges that eight bits need and the bundle lacks."""
    from fewstep.exporter.graph.precision import EIGHT_BITS

    eight = [p for p in wanted if p in EIGHT_BITS]
    for plan in plans if eight else []:
        from fewstep.calibration.ranges import calibrate_ranges

        known = bundle.ranges(plan)
        if missing := [p for p in eight if known is None or p not in known.excluded]:
            bundle = calibrate_ranges(bundle, plan, missing, again=False, track=track)
    return bundle


@verb(app, panel=PANEL)
def build(
    bundle: BundlePath,
    graph: Annotated[list[str] | None, typer.Option(help="A graph of the bundle; repeat for more.", show_default="all")] = None,
    flavour: Annotated[str | None, typer.Option(help="tensorrt_rtx or tensorrt.", show_default="the best here")] = None,
    target: Annotated[list[str] | None, typer.Option(help="GPU architecture, such as 89; repeat.", show_default="any")] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Batches to tune for; each serves those above the one before it.", show_default="32; native 1,32"),
    ] = None,
    workspace_mb: Annotated[int | None, typer.Option(help="Scratch memory of the engine.", show_default="all")] = None,
    level: Annotated[int | None, typer.Option(help="0 fast build, 5 fast engine; native.", show_default="3")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of measured kernels; native.", show_default=False)] = None,
    flag: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(get_args(EngineFlag))}; repeat.", show_default=False)
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what would not work, and build nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Build TensorRT engines from the graphs; TensorRT-RTX needs no GPU. An engine whose key is equal is kept.

    Refuses what the table of --explain stops, and an engine that would compute in another precision than its graph's.
    """
    from fewstep.exporter.engine import build as engine
    from fewstep.exporter.engine.cases import EngineSettings
    from fewstep.exporter.engine.flavour import choose
    from fewstep.system.machine import this_machine

    if unknown := [f for f in flag or [] if f not in get_args(EngineFlag)]:
        raise ValueError(f"a flag is one of {', '.join(get_args(EngineFlag))}, got {unknown[0]!r}")
    if timing_cache:
        check_file(timing_cache)
    loaded, machine = Bundle.load(bundle) if explain else editable(bundle), this_machine()
    chosen, reason = choose(cast(Any, flavour), machine)
    settings = EngineSettings(
        targets=tuple(target or ()),
        batch=chosen.batch if batch is None else tuple(whole_numbers("batch", batch)),
        workspace_bytes=workspace_mb << 20 if workspace_mb is not None else None,
        level=level,
        timing_cache=timing_cache,
        flags=tuple(cast(list[EngineFlag], flag or [])),
    )
    jobs = engine.prepare(loaded, graph or _for_gpus(loaded), settings, chosen, machine)
    if not explain:
        engine.refuse(jobs)
    say(f"{chosen.title}: {reason}")
    if not graph and len(_for_gpus(loaded)) < len(loaded.manifest.graphs):
        say("graphs in int8 are left out, it is the form for CPUs; int8-fp16 is the one for GPUs")
    _say_jobs(jobs)
    if not explain:
        engine.build(loaded, jobs, meter=meter)
        loaded = Bundle.load(bundle)
        _say_engines(loaded, jobs)
    result: dict[str, Any] = {"bundle": str(bundle), "flavour": chosen.name, "version": chosen.version, "reason": reason}
    result["engines"] = {job.name: job.report(None if explain else loaded) for job in jobs}
    finish(result, as_json, None if explain else f"fewstep check {bundle}")


def _for_gpus(bundle: Bundle) -> list[str]:
    """All graphs but those in the eight-bit form for CPUs, which TensorRT does not take."""
    return [name for name, graph in bundle.manifest.graphs.items() if graph.precision != "int8"]


def _say_jobs(jobs: Sequence[Job]) -> None:
    """What speaks against the builds, and why each engine is built or kept."""
    for finding in dict.fromkeys(finding for job in jobs for finding in job.findings):
        show(f"{finding.severity:<5}  {finding.rule}: {finding.sentence}")
    for job in jobs:
        why = "; ".join(f"{miss.part} was {miss.old}, is {miss.new}" for miss in job.misses)
        show(f"{job.name}: {'up to date' if job.up_to_date else 'to build'}" + (f" ({why})" if why else ""))


def _say_engines(bundle: Bundle, jobs: Sequence[Job]) -> None:
    for entry in (bundle.manifest.engines[job.name] for job in jobs):
        kinds = ", ".join(f"{count} layers in {kind}" for kind, count in entry.layers.items())
        show(f"{entry.file}: {kinds}, {size(bundle.manifest.files[entry.file].bytes)}, built in {entry.seconds:.1f} s")


@verb(app, panel=PANEL)
def package(
    bundle: BundlePath,
    target: Annotated[list[str], typer.Option(help="ort, web, openvino, device or all; repeat for more.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory to write, a folder per target.")] = Path("package"),
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan of the bundle; repeat for more.", show_default="the default")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="With commas between.", show_default="fp32; all there are for device")
    ] = None,
    ort_web: Annotated[
        Path | None, typer.Option(help="npm package onnxruntime-web to copy beside the page.", show_default="from a CDN")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write plans as phones, browsers, Intel machines and devices take them; what is converted is run and compared.

    ort: ONNX Runtime's format. web: a static page. openvino: its IR. device: a bundle that builds its engine without torch.
    """
    from fewstep.exporter.edge.package import TARGETS, package

    if unknown := [t for t in target if t not in (*TARGETS, "all")]:
        raise ValueError(f"target is {', '.join(TARGETS)} or all, got {unknown[0]!r}")
    targets = TARGETS if "all" in target else list(dict.fromkeys(cast(list[Any], target)))
    if ort_web and "web" not in targets:
        raise ValueError("--ort-web brings files for the page; add --target web or leave it out")
    wanted = precisions(precision) if precision else []
    report = package(
        Bundle.load(bundle), out, targets, plans=plan or (), precisions=wanted, ort_web_package=ort_web, track=track
    )
    table("sizes", ["part", "bytes", "gzipped", ""], report.size_rows())
    if report.deviations:
        table("against the bundle's graphs", ["graph", "computes in", "max error", "of the output"], report.error_rows())
    then = {"web": f"python -m http.server -d {out / 'web'}", "device": f"fewstep check {out / 'device' / bundle.name}"}
    finish({"out": str(out)} | report.dump(), as_json, next((then[t] for t in targets if t in then), None))

"""The fewstep command: one function per verb, each importing what it needs when it runs."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

try:
    import typer
except ImportError:
    sys.exit("fewstep: the command line needs typer, rich and Pillow; install them with: pip install 'fewstep[cli]'")

import fewstep
from fewstep import solvers
from fewstep.bundle import Bundle
from fewstep.console import meter, say, table, track
from fewstep.guidance import Guidance
from fewstep.manifest import EngineFlag, PlanEntry, Precision
from fewstep.schedule import karras

if TYPE_CHECKING:
    from fewstep.exporter.engine import Job

__all__ = ["app", "main"]

SOLVERS = {"ddim": solvers.ddim, "heun": solvers.heun, "dpmpp_2m": solvers.dpmpp_2m}

app = typer.Typer(
    help="Train, distil, calibrate, export and run few-step diffusion models.\n\n"
    "A bundle directory goes from verb to verb: train makes it, each verb adds to it, generate needs nothing else.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

BundlePath = Annotated[Path, typer.Argument(help="A bundle directory, such as digits.bundle.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def _finish(result: dict[str, Any], as_json: bool, then: str | None = None) -> None:
    """Print the result for machines and the next command for people."""
    if as_json:
        print(json.dumps(result, indent=1))
    if then:
        say(f"next: {then}")


def _version(show: bool) -> None:
    if show:
        print(f"fewstep {fewstep.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("digits.bundle"),
    data: Annotated[
        str, typer.Option(help="mnist5k, a folder of images (one subfolder per class), or a data set.")
    ] = "mnist5k",
    steps: Annotated[int, typer.Option(help="Updates of the network.")] = 2000,
    batch: Annotated[int, typer.Option(help="Images per update, over all processes.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate; it falls to 0 over the run.")] = 3e-3,
    tau: Annotated[float, typer.Option(help="Lskip: weight of the plain loss; 1 switches Lskip off.")] = 0.99,
    skip: Annotated[int, typer.Option(help="Lskip: levels of 1000 that it looks ahead.")] = 9,
    resolution: Annotated[int | None, typer.Option(help="Side in pixels for a folder's images.", show_default=False)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a teacher on real images and start a bundle with it. Stopped, it goes on where it was."""
    from fewstep.data import open_images
    from fewstep.trainer.teacher import TeacherConfig, train_teacher

    config = TeacherConfig(steps=steps, batch=batch, lr=lr, tau=tau, skip=skip, seed=seed)
    bundle = train_teacher(out, open_images(data, resolution=resolution), config, track=track)
    _finish({"bundle": str(out), "networks": list(bundle.manifest.networks)}, as_json, f"fewstep distill {out} --steps 1")


@app.command()
def distill(
    bundle: BundlePath,
    steps: Annotated[int, typer.Option(help="Network calls per image of the generator, 1 to 4.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the new network and plan.", show_default="sid<steps>")] = None,
    iterations: Annotated[int | None, typer.Option(help="Updates of the generator.", show_default="220, or 100")] = None,
    batch: Annotated[int, typer.Option(help="Images per update, over all processes.")] = 32,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="6e-4, or 3e-4")] = None,
    alpha: Annotated[float | None, typer.Option(help="SiD's alpha.", show_default="1.2, or 1.0")] = None,
    guidance: Annotated[float, typer.Option(help="Weight the teacher is guided with; 1 is none.")] = 1.5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Distil the teacher into a generator of 1 to 4 steps (SiD). Reads no data. Stopped, it goes on where it was.

    Where two defaults are shown, the first is for one step and the second for several.
    """
    from fewstep.trainer.sid import digits_sid, distill

    name = name or f"sid{steps}"
    given = {"iterations": iterations, "lr": lr, "alpha": alpha}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    config = replace(digits_sid(steps), batch=batch, guidance=guidance, seed=seed, **chosen)
    distill(Bundle.load(bundle), name, config, track=track)
    _finish({"bundle": str(bundle), "plan": name}, as_json, f"fewstep export {bundle} --plan {name}")


@app.command()
def calibrate(
    bundle: BundlePath,
    steps: Annotated[int, typer.Option(help="Steps (= network calls) of the fitted plan.")] = 4,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="iia<steps>")] = None,
    fine: Annotated[int, typer.Option(help="Fine steps that one fitted step should land on.")] = 10,
    samples: Annotated[int, typer.Option(help="Noise and label pairs to fit on.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a solver to the teacher (IIA-DDIM): better images from the same few network calls. Reads no data."""
    from fewstep.calibration.iia import calibrate_ddim

    name = name or f"iia{steps}"
    _, fit = calibrate_ddim(Bundle.load(bundle), steps, name=name, fine=fine, samples=samples, seed=seed, track=track)
    rows = [(str(k), f"{b:.5f}", f"{a:.5f}") for k, (b, a) in enumerate(zip(fit.before, fit.after, strict=True))]
    table("mean square distance to the fine target", ["step", "DDIM", "IIA-DDIM"], rows)
    result = {"bundle": str(bundle), "plan": name, "residual_before": fit.before, "residual_after": fit.after}
    _finish(result, as_json, f"fewstep export {bundle} --plan {name}")


@app.command()
def export(
    bundle: BundlePath,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan of the bundle; repeat for more.", show_default="the default")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Or a new teacher plan: ddim, heun, dpmpp_2m.", show_default=False)] = None,
    steps: Annotated[int, typer.Option(help="Steps of the new plan.")] = 10,
    guidance: Annotated[float, typer.Option(help="Guidance weight of the new plan; 1 is none.")] = 1.0,
    lo: Annotated[float, typer.Option(help="No guidance at noise levels up to this.")] = 0.0,
    hi: Annotated[float, typer.Option(help="No guidance at noise levels above this.")] = inf,
    precision: Annotated[str, typer.Option(help="fp32, fp16, or both with a comma.")] = "fp32,fp16",
    as_json: Json = False,
) -> None:
    """Write plans as ONNX graphs: network, sampler and guidance in one file that ends in uint8 images."""
    from fewstep.exporter.export import export_graphs

    loaded = Bundle.load(bundle)
    precisions = [cast(Precision, p) for p in precision.split(",")]
    if unknown := [p for p in precisions if p not in get_args(Precision)]:
        raise ValueError(f"precision is fp32 or fp16, got {unknown[0]!r}")
    plans = plan or []
    described = (steps, guidance, lo, hi) != (10, 1.0, 0.0, inf)
    if (plans and solver) or (described and not solver):
        raise ValueError(
            "--plan names a plan there is; --steps, --guidance, --lo and --hi describe a new one and need --solver alone"
        )
    if solver:
        if solver not in SOLVERS:
            raise ValueError(f"solver is one of {', '.join(SOLVERS)}, got {solver!r}")
        table_of = SOLVERS[solver](karras(steps, 0.002, 80.0), Guidance(guidance, lo, hi))
        interval = "" if (lo, hi) == (0.0, inf) else f"_{lo:g}-{hi:g}"
        name = f"{solver}{steps}" + ("" if guidance == 1 else f"_w{guidance:g}{interval}")
        with loaded.edit() as draft:
            draft.manifest.plans[name] = PlanEntry.of(table_of, network="teacher", solver=f"{solver}, {steps} steps")
        loaded, plans = Bundle.load(bundle), [*plans, name]
    if not plans and loaded.manifest.default is None:
        raise ValueError(f"{bundle} has no default plan; name one with --plan, or a solver with --solver")
    plans = plans or [cast(str, loaded.manifest.default)]
    exported = export_graphs(loaded, plans, precisions, track=track)
    files = {name: g.file for name, g in exported.manifest.graphs.items() if g.plan in plans and g.precision in precisions}
    for file in files.values():
        say(f"{bundle / file}  {exported.manifest.files[file].bytes / 1e6:.1f} MB")
    _finish({"bundle": str(bundle), "graphs": files}, as_json, f"fewstep generate {bundle} --plan {plans[-1]} --out grid.png")


@app.command()
def build(
    bundle: BundlePath,
    graph: Annotated[list[str] | None, typer.Option(help="A graph of the bundle; repeat for more.", show_default="all")] = None,
    flavour: Annotated[str | None, typer.Option(help="tensorrt_rtx or tensorrt.", show_default="the best here")] = None,
    target: Annotated[list[str] | None, typer.Option(help="GPU architecture, such as 89; repeat.", show_default="any")] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Batches to tune for; each serves those above the one before it.", show_default="16; native 1,16"),
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
    from fewstep.exporter import engine
    from fewstep.exporter.cases import Settings
    from fewstep.exporter.flavour import choose
    from fewstep.exporter.machine import this_machine

    if unknown := [f for f in flag or [] if f not in get_args(EngineFlag)]:
        raise ValueError(f"a flag is one of {', '.join(get_args(EngineFlag))}, got {unknown[0]!r}")
    loaded, machine = Bundle.load(bundle), this_machine()
    chosen, reason = choose(cast(Any, flavour), machine)
    settings = Settings(
        targets=tuple(target or ()),
        batch=chosen.batch if batch is None else tuple(_whole_numbers("batch", batch)),
        workspace_bytes=workspace_mb << 20 if workspace_mb is not None else None,
        level=level,
        timing_cache=timing_cache,
        flags=tuple(cast(list[EngineFlag], flag or [])),
    )
    jobs = engine.prepare(loaded, graph or list(loaded.manifest.graphs), settings, chosen, machine)
    if not explain:
        engine.refuse(jobs)
    say(f"{chosen.title}: {reason}")
    _say_jobs(jobs)
    if not explain:
        try:
            engine.build(loaded, jobs, meter=meter)
        except KeyboardInterrupt:
            say("fewstep: stopped; the bundle is as it was")
            raise typer.Exit(130) from None
        loaded = Bundle.load(bundle)
        _say_engines(loaded, jobs)
    result: dict[str, Any] = {"bundle": str(bundle), "flavour": chosen.name, "version": chosen.version, "reason": reason}
    result["engines"] = {job.name: job.report(None if explain else loaded) for job in jobs}
    _finish(result, as_json, f"fewstep {'build' if explain else 'check'} {bundle}")


def _say_jobs(jobs: Sequence[Job]) -> None:
    """What speaks against the builds, and why each engine is built or kept."""
    for finding in dict.fromkeys(finding for job in jobs for finding in job.findings):
        say(f"{finding.severity:<5}  {finding.rule}: {finding.sentence}")
    for job in jobs:
        why = "; ".join(f"{miss.part} was {miss.old}, is {miss.new}" for miss in job.misses)
        say(f"{job.name}: {'up to date' if job.up_to_date else 'to build'}" + (f" ({why})" if why else ""))


def _say_engines(bundle: Bundle, jobs: Sequence[Job]) -> None:
    for entry in (bundle.manifest.engines[job.name] for job in jobs):
        kinds = ", ".join(f"{count} layers in {kind}" for kind, count in entry.layers.items())
        say(f"{entry.file}: {kinds}, {_size(bundle.manifest.files[entry.file].bytes)}, built in {entry.seconds:.1f} s")


@app.command()
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
    from fewstep.exporter.package import TARGETS, package

    if unknown := [t for t in target if t not in (*TARGETS, "all")]:
        raise ValueError(f"target is {', '.join(TARGETS)} or all, got {unknown[0]!r}")
    targets = TARGETS if "all" in target else list(dict.fromkeys(cast(list[Any], target)))
    if ort_web and "web" not in targets:
        raise ValueError("--ort-web brings files for the page; add --target web or leave it out")
    precisions = [cast(Precision, p) for p in precision.split(",")] if precision else []
    if wrong := [p for p in precisions if p not in get_args(Precision)]:
        raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, got {wrong[0]!r}")
    report = package(
        Bundle.load(bundle), out, targets, plans=plan or (), precisions=precisions, ort_web_package=ort_web, track=track
    )
    table("sizes", ["part", "bytes", "gzipped", ""], report.size_rows())
    if report.deviations:
        table("against the bundle's graphs", ["graph", "computes in", "max error", "levels of 255"], report.error_rows())
    then = {"web": f"python -m http.server -d {out / 'web'}", "device": f"fewstep check {out / 'device' / bundle.name}"}
    _finish({"out": str(out)} | report.dump(), as_json, next((then[t] for t in targets if t in then), None))


@app.command()
def generate(
    bundle: BundlePath,
    labels: Annotated[str | None, typer.Option(help="Classes, such as 3,1,4.", show_default="every class once")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the next ones count up.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
    plan: Annotated[str | None, typer.Option(help="A plan of the bundle.", show_default="the default")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or fp16.", show_default="by backend")] = None,
    backend: Annotated[str | None, typer.Option(help="cuda or cpu.", show_default="the best here")] = None,
    scale: Annotated[int, typer.Option(min=1, max=64, help="Enlarge each pixel.")] = 4,
    as_json: Json = False,
) -> None:
    """Make images and write them as one PNG. Uses ONNX Runtime only."""
    import time

    from fewstep.picture import refuse_path, save_grid
    from fewstep.runtime import Generator

    generator = Generator.open(bundle, plan=plan, precision=precision, backend=backend)
    classes = generator.condition.classes
    wanted = _whole_numbers("labels", labels) if labels is not None else list(range(classes)) or None
    refuse_path(out)
    seeds = [seed + i for i in range(len(wanted) if wanted is not None else 1)]
    start = time.perf_counter()
    images = generator(wanted, seeds=seeds)
    latency_ms = (time.perf_counter() - start) * 1e3
    save_grid(out, images, columns=min(len(images), 10), scale=scale)
    say(f"{generator.graph} on {generator.backend} ({generator.reason}): {len(images)} images in {latency_ms:.1f} ms")
    result = {"out": str(out), "graph": generator.graph, "backend": generator.backend, "latency_ms": latency_ms}
    _finish(result | {"labels": wanted, "seeds": seeds, "nfe": generator.plan.nfe}, as_json)
    say(f"wrote {out}")


@app.command()
def check(bundle: BundlePath, as_json: Json = False) -> None:
    """Verify every file of a bundle and compare its graphs with torch's reference.

    Exit code 1 when a graph is off its limit, 2 when a file is not what was saved.
    """
    from fewstep.exporter.parity import check_graphs

    loaded = Bundle.load(bundle)
    loaded.verify()
    results = check_graphs(loaded)
    rows = [(r.graph, f"{r.max_error:.2e}", f"{r.mean_error:.2e}", f"{r.limit:.0e}", "ok" if r.ok else "OUT") for r in results]
    table("ONNX Runtime against torch fp32", ["graph", "max error", "mean error", "limit", ""], rows)
    _finish({"bundle": str(bundle), "graphs": [vars(r) | {"ok": r.ok} for r in results]}, as_json)
    if not all(r.ok for r in results):
        raise typer.Exit(1)


@app.command()
def inspect(bundle: BundlePath, as_json: Json = False) -> None:
    """Show what a bundle holds."""
    manifest = Bundle.load(bundle).manifest
    condition = f"{manifest.condition.classes} classes" if manifest.condition.classes else "no condition"
    say(f"{manifest.name}: {manifest.image.channels}x{manifest.image.height}x{manifest.image.width} images, {condition}")
    plans = [
        (name + (" (default)" if name == manifest.default else ""), p.network, p.solver, str(p.plan().nfe))
        for name, p in manifest.plans.items()
    ]
    table("plans", ["name", "network", "solver", "network calls"], plans)
    files = [(name, g.file, g.precision, _size(manifest.files[g.file].bytes)) for name, g in manifest.graphs.items()]
    files += [(name, e.file, e.key.precision, _size(manifest.files[e.file].bytes)) for name, e in manifest.engines.items()]
    table("graphs and engines", ["name", "file", "precision", "size"], files)
    _finish(manifest.model_dump(mode="json", by_alias=True), as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the bundle, the picture and the result.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Everything with few steps, in under 2 minutes.")] = False,
    as_json: Json = False,
) -> None:
    """The whole way on real digits: train, calibrate, distil, export, build, generate, measure. Stopped, it goes on."""
    from fewstep.demo import full, run_demo, small

    result = run_demo(out, small() if quick else full())
    _finish(result, as_json, f"fewstep generate {out / 'digits.bundle'} --labels 3,1,4 --seed 0 --out grid.png")


def _whole_numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} are whole numbers with commas between, such as 3,1,4, got {text!r}") from None


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def main() -> None:
    """Run the command; bad input and a full disk end with one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("FEWSTEP_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = (
                f"no space left on the device ({error.filename or 'while writing'}); free some and repeat, nothing was changed"
            )
        say(f"fewstep: {text}")
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Verbs that use a bundle: generate, check, inspect, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.card import license
from fewstep.artifact.classes import listed
from fewstep.artifact.manifest import Manifest
from fewstep.cli.app import BundlePath, Json, app, finish, size
from fewstep.system.console import say, show, table, track
from fewstep.system.places import check_file
from fewstep.system.progress import silent

__all__ = ["check", "demo", "generate", "inspect"]

AT_ONCE = 100  # images, between two lines of progress


@app.command(rich_help_panel="Use it")
def generate(
    bundle: BundlePath,
    labels: Annotated[
        str | None, typer.Option(help="Classes by number or name, such as 3,1,4 or bag,coat.", show_default="every class once")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="How many; the classes take turns.", show_default="one of each class, or one"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the next ones count up.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
    plan: Annotated[str | None, typer.Option(help="A plan of the bundle.", show_default="the default")] = None,
    precision: Annotated[str | None, typer.Option(help="Precision of the graph.", show_default="by backend")] = None,
    backend: Annotated[str | None, typer.Option(help="tensorrt, cuda or cpu.", show_default="the fastest here")] = None,
    graph: Annotated[str | None, typer.Option(help="A graph of the bundle.", show_default="by plan and precision")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="one for each core")] = None,
    scale: Annotated[int, typer.Option(min=1, max=64, help="Enlarge each pixel.")] = 4,
    as_json: Json = False,
) -> None:
    """Make images and write them as one PNG. Uses ONNX Runtime only."""
    import time

    from fewstep.runtime import Generator
    from fewstep.system.picture import save_grid

    check_file(out, ".png")
    generator = Generator.open(bundle, plan=plan, graph=graph, precision=precision, backend=backend, threads=threads)
    classes = generator.condition.classes
    if labels is not None and generator.condition.kind != "labels":
        raise ValueError("this bundle was trained without classes; leave --labels out")
    turns = generator.classes.read(labels) if labels is not None else list(range(classes))
    count = images or len(turns) or 1
    wanted, seeds = [turns[i % len(turns)] for i in range(count)] if turns else None, list(range(seed, seed + count))
    start = time.perf_counter()
    parts = [slice(i, i + AT_ONCE) for i in range(0, count, AT_ONCE)]
    follow = track if len(parts) > 1 else silent
    made = [generator(wanted and wanted[parts[i]], seeds=seeds[parts[i]]) for i in follow(range(len(parts)), "make images")]
    latency_ms = (time.perf_counter() - start) * 1e3
    save_grid(out, np.concatenate(made), columns=min(count, 10), scale=scale)
    number = f"{count} image{'s' * (count > 1)}"
    show(f"{generator.graph} on {generator.backend} ({generator.reason}): {number} in {latency_ms:.1f} ms")
    result = {"out": str(out), "graph": generator.graph, "backend": generator.backend, "latency_ms": latency_ms}
    called = [generator.classes.called(label) for label in wanted or ()]
    finish(result | {"labels": wanted, "classes": called, "seeds": seeds, "nfe": generator.plan.nfe}, as_json)
    show(f"wrote {out}" + (f": {listed(called)}" if generator.condition.names else ""))


@app.command(rich_help_panel="Use it")
def check(bundle: BundlePath, as_json: Json = False) -> None:
    """Verify every file of a bundle and compare graphs and engines with torch's reference, state by state. Needs no torch.

    Engines run where their GPU is. Exit code 1 when one is off its limit, 2 when a file is not what was saved.
    """
    from fewstep.exporter.engine.check import check_engines
    from fewstep.exporter.parity import check_graphs

    loaded = Bundle.load(bundle)
    loaded.verify()
    results = check_graphs(loaded) + check_engines(loaded)
    rows = []
    for r in results:
        verdict = "not here" if r.skipped else "ok" if r.ok else "OUT"
        numbers = (f"{r.max_error:.1e}", f"{r.limit:.0e}", f"{r.mean_error:.1e}", f"{r.psnr_db:.0f}", f"{r.min_psnr_db:.0f}")
        rows.append((r.graph, r.plan, *(numbers if not r.skipped else [""] * 5), verdict))
    head = ["graph", "plan", "max error", "limit", "mean", "PSNR", "limit", ""]
    table("against torch fp32: graphs in ONNX Runtime on the CPU, engines on the GPU", head, rows)
    for r in results:
        if r.skipped:
            show(f"{r.graph}: {r.skipped}")
        elif len(r.drift) > 1:
            show(f"{r.graph}, {r.plan}: drift by row {' '.join(f'{d:.0e}' for d in r.drift)}")
    for line in _absent(loaded.manifest):
        show(line)
    if loaded.card_is_changed():
        say("card.md is not the one that was saved; the next verb that changes the bundle takes it over")
    finish({"bundle": str(bundle), "graphs": [vars(r) | {"ok": r.ok} for r in results]}, as_json)
    if not all(r.ok for r in results):
        raise typer.Exit(1)


@app.command(rich_help_panel="Use it")
def inspect(bundle: BundlePath, as_json: Json = False) -> None:
    """Show what a bundle holds."""
    manifest = Bundle.load(bundle).manifest
    kinds = {"none": "no condition", "labels": f"{manifest.condition.classes} classes", "embeddings": "embeddings"}
    condition = kinds[manifest.condition.kind]
    show(f"{manifest.name}: {manifest.image.channels}x{manifest.image.height}x{manifest.image.width} images, {condition}")
    if names := manifest.condition.names:
        show("classes: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)))
    plans = [
        (
            name + (" (default)" if name == manifest.default else ""),
            p.network,
            p.solver,
            str(p.plan().nfe),
            _exported(manifest, name),
        )
        for name, p in manifest.plans.items()
    ]
    networks = [
        (
            name,
            n.parametrisation.kind,
            license(manifest, name),
            size(sum(f.bytes for path, f in manifest.files.items() if path.startswith(f"{n.directory}/")))
            if n.directory
            else "not here",
        )
        for name, n in manifest.networks.items()
    ]
    table("networks", ["name", "estimates", "license", "training weights"], networks)
    table("plans", ["name", "network", "solver", "calls", "graphs"], plans)
    files = [
        (name, g.file, g.precision, size(sum(manifest.files[path].bytes for path in g.paths)))
        for name, g in manifest.graphs.items()
    ]
    files += [(name, e.file, e.key.precision, size(manifest.files[e.file].bytes)) for name, e in manifest.engines.items()]
    table("graphs and engines", ["name", "file", "precision", "size"], files)
    for line in _absent(manifest):
        show(line)
    finish(manifest.model_dump(mode="json", by_alias=True), as_json)


def _absent(manifest: Manifest) -> list[str]:
    """What the bundle was shipped without, and what that is for, a line for each."""
    names = [f"the network {name}" for name, entry in manifest.networks.items() if entry.directory is None]
    names += ["the decoder"] if manifest.latent and manifest.latent.directory is None else []
    return [f"{name} is not here: its graphs run, but nothing can be exported, fitted or distilled from it" for name in names]


def _exported(manifest: Manifest, plan: str) -> str:
    """The precisions a plan has graphs in, a step graph of its network among them."""
    network = manifest.plans[plan].network
    found = [g.precision for g in manifest.graphs.values() if g.plan == plan or (g.plan is None and g.network == network)]
    return " ".join(dict.fromkeys(found)) or "none yet"


@app.command(rich_help_panel="Use it")
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the bundle, pictures, report and result.")] = Path("demo"),
    full: Annotated[bool, typer.Option("--full", help="Train the teacher first, and everything that comes of it.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Everything with few steps; what learns is poor.")] = False,
    as_json: Json = False,
) -> None:
    """From a teacher of real digits to a report: calibrate, distil, export, build, compare, pick. Stopped, it goes on."""
    from fewstep.cli.demo import full as anew
    from fewstep.cli.demo import run_demo, short, small

    config = anew() if full else short()
    result = run_demo(out, small(config) if quick else config)
    finish(result, as_json, f"fewstep generate {out / 'digits.bundle'} --labels 3,1,4 --seed 0 --out grid.png")

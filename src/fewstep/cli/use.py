"""Verbs that use a bundle: generate, check, inspect, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.card import license
from fewstep.artifact.classes import Classes, listed
from fewstep.artifact.manifest import Manifest
from fewstep.artifact.signature import Output
from fewstep.cli.app import BundlePath, Inputs, Json, app, finish, given_arrays, size
from fewstep.cli.verb import verb
from fewstep.system.console import say, show, table, track
from fewstep.system.places import check_file, writing
from fewstep.system.progress import silent

if TYPE_CHECKING:
    from fewstep.runtime import Generator

__all__ = ["check", "demo", "generate", "inspect"]

PANEL = "Use it"

Rows = dict[str, npt.NDArray[Any]]
AT_ONCE = 100  # samples, between two lines of progress
SCALE = 4


@verb(app, panel=PANEL)
def generate(
    bundle: BundlePath,
    labels: Annotated[
        str | None, typer.Option(help="Classes by number or name, such as 3,1,4 or bag,coat.", show_default="every class once")
    ] = None,
    inputs: Inputs = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="How many; classes, and rows of --inputs, take turns.", show_default="one of each, or one"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; the next ones count up.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A PNG of images, or an .npy of all samples.", show_default="grid.png, or values.npy for arrays"),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="A plan of the bundle.", show_default="the default")] = None,
    precision: Annotated[str | None, typer.Option(help="Precision of the graph.", show_default="by backend")] = None,
    backend: Annotated[str | None, typer.Option(help="tensorrt, cuda or cpu.", show_default="the fastest here")] = None,
    graph: Annotated[str | None, typer.Option(help="A graph of the bundle.", show_default="by plan and precision")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="one for each core", hidden=True)
    ] = None,
    scale: Annotated[
        int | None, typer.Option(min=1, max=64, help="Enlarge each pixel of a PNG.", show_default=str(SCALE))
    ] = None,
    as_json: Json = False,
) -> None:
    """Make samples, and write images as one PNG, or numbers as one .npy. Uses ONNX Runtime only."""
    from fewstep.runtime import Generator

    loaded = Bundle.load(bundle)
    output = loaded.manifest.output
    out = out or Path("grid.png" if output.pictures else f"{output.tensor.name}.npy")
    _check_out(out, output, scale)
    generator = Generator(loaded, plan=plan, graph=graph, precision=precision, backend=backend, threads=threads)
    given = _given(generator, labels, inputs)
    count = samples or max(map(len, given.values()), default=1)
    seeds = list(range(seed, seed + count))
    made, latency_ms = _made(generator, given, seeds)
    _write(out, made, scale or SCALE)
    number = f"{count} sample{'s' * (count > 1)}"
    show(f"{generator.graph} on {generator.backend} ({generator.reason}): {number} in {latency_ms:.1f} ms")
    result = {"out": str(out), "graph": generator.graph, "backend": generator.backend, "latency_ms": latency_ms}
    wanted, called = _labels(generator, given, count)
    finish(result | {"labels": wanted, "classes": called, "seeds": seeds, "nfe": generator.plan.nfe}, as_json)
    numbers = [f"{made.dtype} {made.shape}, {output.meaning}"] if out.suffix.lower() == ".npy" else []
    show(": ".join([f"wrote {out}", *numbers, *([listed(called)] if called != [*map(str, wanted)] else [])]))


def _check_out(out: Path, output: Output, scale: int | None) -> None:
    """Whether samples can be written there, to be asked before they are made. Raises ValueError."""
    check_file(out)
    suffix = out.suffix.lower()
    if suffix not in (".png", ".npy"):
        raise ValueError(f"this writes PNG or NPY, so the file ends with .png or .npy; got {out.name!r}")
    if suffix == ".png" and not output.pictures:
        tensor = output.tensor
        raise ValueError(f"samples of this bundle are {tensor.dtype} {tensor.shape}, no pictures; let the file end with .npy")
    if suffix == ".npy" and scale is not None:
        raise ValueError("--scale makes pictures larger, and an .npy holds numbers; leave it out")


def _given(generator: Generator, labels: str | None, path: Path | None) -> Rows:
    """What samples are made from, by the names of inputs, as rows that take turns.

    Raises ValueError for classes that are said twice or are not there, and rows that do not go together.
    """
    signature = generator.signature
    known, given = signature.labels, given_arrays(path) or {}
    takes = [tensor.name for tensor in signature.tensors(guided=True)]
    if strange := [name for name in given if name not in takes]:
        raise ValueError(f"{path} has {strange[0][:80]}, and this bundle takes {', '.join(takes) or 'nothing'}; leave that out")
    for name in takes[len(signature.inputs) :]:
        if not generator.plan.guided and given.pop(name, None) is not None:
            say(f"{name} is left out: the plan is not guided")
    if labels is not None and known is None:
        raise ValueError("this bundle was trained without classes; leave --labels out")
    if labels is not None and known and known.name in given:
        raise ValueError(f"--labels and {path} both say which {known.name}; leave one out")
    if known and known.name not in given:
        classes = Classes(known.classes, known.names)
        given[known.name] = np.array(classes.read(labels)) if labels is not None else np.arange(known.classes)
    if empty := [name for name, rows in given.items() if not rows.ndim or not len(rows)]:
        raise ValueError(f"{empty[0]} in {path} has no rows; every sample is made from one")
    of_file = {len(given[each.name]) for each in signature.inputs if path and each.name in given and each is not known}
    if len(of_file) > 1:
        raise ValueError(f"every sample has a row of every array, {path} has {' and '.join(map(str, sorted(of_file)))} of them")
    return given


def _made(generator: Generator, given: Rows, seeds: Sequence[int]) -> tuple[npt.NDArray[Any], float]:
    """Samples, and how many ms they took."""
    import time

    start = time.perf_counter()
    parts = [slice(i, i + AT_ONCE) for i in range(0, len(seeds), AT_ONCE)]
    follow = track if len(parts) > 1 else silent
    made = [
        generator(seeds=seeds[parts[i]], **_turns(given, range(len(seeds))[parts[i]]))
        for i in follow(range(len(parts)), "make samples")
    ]
    return np.concatenate(made), (time.perf_counter() - start) * 1e3


def _turns(given: Rows, numbers: range) -> dict[str, Any]:
    """The rows of samples that are numbered."""
    return {name: rows[np.array(numbers) % len(rows)] for name, rows in given.items()}


def _labels(generator: Generator, given: Rows, count: int) -> tuple[list[int], list[str]]:
    """The classes of so many samples, and what these are called; none where there are no classes."""
    known = generator.signature.labels
    if known is None:
        return [], []
    turns = _turns({known.name: given[known.name]}, range(count))
    labels, classes = known.checked(turns[known.name], count).tolist(), Classes(known.classes, known.names)
    return labels, [classes.called(label) for label in labels]


def _write(out: Path, made: npt.NDArray[Any], scale: int) -> None:
    from fewstep.system.picture import save_grid

    if out.suffix.lower() == ".png":
        save_grid(out, made, columns=min(len(made), 10), scale=scale)
        return
    with writing(out) as beside, beside.open("wb") as file:
        np.save(file, made, allow_pickle=False)


@verb(app, panel=PANEL)
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


@verb(app, panel=PANEL)
def inspect(bundle: BundlePath, as_json: Json = False) -> None:
    """Show what a bundle holds."""
    manifest = Bundle.load(bundle).manifest
    made_from = "; ".join(each.about for each in manifest.signature.inputs) or "nothing"
    show(f"{manifest.name}: {manifest.output.tensor.name}, {manifest.output.about}; made from {made_from}")
    plans = [
        (
            name + (" (default)" if name == manifest.default else ""),
            p.denoiser,
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
        for name, n in manifest.denoisers.items()
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
    names = [f"the network {name}" for name, entry in manifest.denoisers.items() if entry.directory is None]
    names += ["the decoder"] if manifest.decoder and manifest.decoder.directory is None else []
    return [f"{name} is not here: its graphs run, but nothing can be exported, fitted or distilled from it" for name in names]


def _exported(manifest: Manifest, plan: str) -> str:
    """The precisions a plan has graphs in, a step graph of its network among them."""
    network = manifest.plans[plan].denoiser
    found = [g.precision for g in manifest.graphs.values() if g.plan == plan or (g.plan is None and g.denoiser == network)]
    return " ".join(dict.fromkeys(found)) or "none yet"


@verb(app, panel=PANEL)
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

"""Verbs that choose: compare, pick, report, tau, consistency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fewstep.artifact.adopt import mismatch
from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import (
    SOLVERS,
    BundlePath,
    Inputs,
    Json,
    MixedPrecision,
    app,
    editable,
    finish,
    finite,
    given_arrays,
    solver_of,
    telling,
)
from fewstep.cli.verb import verb
from fewstep.evaluation.comparison import (
    FARTHEST,
    Candidate,
    Comparison,
    Evaluated,
    Limits,
    Spread,
    decimals,
    farthest,
    pick,
    read,
)
from fewstep.system.console import say, show, table, track
from fewstep.system.places import check_folder

__all__ = ["compare", "consistency", "pick_sampler", "report", "tau"]

PANEL = "Decide what ships"
# What to watch once a sampler answers requests, beside what was measured before.
WATCH = (
    "fewstep_request_seconds (fewstep serve, /metrics): its p99 against {p99:.1f} ms of the graph alone",
    "fewstep_requests by outcome: refused ones mean that {rate:.0f} samples per second are not enough",
    "a sample of answers, evaluated like this each week: the distance was {distance}",
    "a new graph, network, driver or machine: compare again before it answers",
)


@verb(app, panel=PANEL)
def compare(
    bundle: BundlePath,
    data: Annotated[
        str,
        typer.Option(help="mnist5k, a folder of images, a data set, arrays; the held-out ones evaluator.", show_default=False),
    ],
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan of the bundle; repeat for more.", show_default="all exported")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="What evaluates images: classifier (of the data), efficientnet, or a file with Inception's weights.",
            show_default="classifier",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, max=100, help="Sets of seeds, one image per held-out one in each.")] = 3,
    thin: Annotated[int, typer.Option(min=1, help="Take every so many-th held-out image.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, max=60.0, help="How long each batch size is timed at least.")] = 1.0,
    mixed_precision: MixedPrecision = "auto",
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Evaluate the samplers of a bundle side by side: quality against held-out images, latency here. Stopped, it goes on."""
    from fewstep.evaluation import compare as comparing

    given = given_arrays(inputs)
    config, loaded = comparing.CompareConfig(data, features, seeds, thin, seconds, mixed_precision), editable(bundle)
    for warning in filter(None, (mismatch(loaded, name) for name in plan or loaded.manifest.plans)):
        say(f"warning: {warning}")
    found = comparing.compare(loaded, config, plan or (), arrays=given, note=say, track=track)
    show_comparison(found)
    for warning in found.doubts():
        say(f"warning: {warning}")
    fit = [
        evaluated.nfe for evaluated in found.plans.values() if evaluated.farthest is None or evaluated.farthest[1] <= FARTHEST
    ]
    picked = f"fewstep pick {bundle} --calls {max(min(fit), 4)}, or: " if fit else ""
    finish(found.model_dump(mode="json"), as_json, f"{picked}fewstep report {bundle}")


# Titles of the scores that a comparison shows, and their names.
SHOWN = {
    "frechet": {"Frechet": "frechet", "recall": "recall", "accuracy": "accuracy"},
    "energy": {"energy": "energy", "sliced W.": "sliced_wasserstein", "means off": "mean", "deviations off": "std"},
}


def show_comparison(found: Comparison) -> None:
    """The comparison as a table."""
    shown, rows = SHOWN[found.metric], []
    for name, evaluated in found.plans.items():
        speed = f"{evaluated.p50_ms:.2f}", f"{evaluated.samples_per_second:.0f}"
        rows.append((name, str(evaluated.nfe), *_quality(evaluated), *_off(evaluated.farthest), _likeness(found, name), *speed))
    real = [_number(key, found.real[key]) if key in found.real else "" for key in shown.values()]
    rows.append(("real training samples", "", *real, *_off(farthest(found.real)), "", "", ""))
    pixels = ["pixels off"] if found.metric == "frechet" else []
    own = [key for key in found.real if key.startswith("own.")]
    head = ["plan", "calls", *shown, *pixels, "PSNR dB", "p50 ms", "samples/s"]
    table(f"{found.images} samples a set, {found.seeds} sets; PSNR against {found.reference}", head, rows)
    if own:
        own_rows = [(name, *(str(evaluated.scores[key]) for key in own)) for name, evaluated in found.plans.items()]
        table("own metrics", ["plan", *(key.removeprefix("own.") for key in own)], own_rows)


def _quality(evaluated: Evaluated) -> list[str]:
    """What a comparison shows of a plan's scores."""
    return [_with_spread(key, evaluated.scores.get(key)) for key in SHOWN[evaluated.metric].values()]


def _with_spread(key: str, score: Spread | None) -> str:
    if score is None:
        return ""
    if key == "recall":
        return _number(key, score.mean)
    return f"{_number(key, score.mean)} ± {_number(key, score.std)}"


def _number(key: str, value: float) -> str:
    """A Frechet distance has few decimals that say something; shares and distances of arrays have more."""
    return f"{value:.{decimals(value) if key == 'frechet' else 3}f}"


def _off(farthest: tuple[str, float] | None) -> list[str]:
    """What pixels are farthest off in; nothing of arrays."""
    return [f"{farthest[0]} {farthest[1]:.2f}"] if farthest else []


def _likeness(found: Comparison, name: str) -> str:
    return "reference" if name == found.reference else f"{found.plans[name].scores['psnr_db'].mean:.1f}"


@verb(app, "pick", panel=PANEL)
def pick_sampler(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles whose samplers were compared.", show_default=False)],
    distance: Annotated[
        float | None,
        typer.Option(help="Distance at most (Frechet's of images, energy of arrays), its spread included.", show_default=False),
    ] = None,
    accuracy: Annotated[float | None, typer.Option(help="Class accuracy at least.", show_default=False)] = None,
    ms: Annotated[float | None, typer.Option(help="Milliseconds for one image at most, p50.", show_default=False)] = None,
    calls: Annotated[int | None, typer.Option(help="Network calls at most.", show_default=False)] = None,
    pixels: Annotated[
        float, typer.Option(help="How far brightness, contrast, detail may be from real images', in deviations of those.")
    ] = FARTHEST,
    price: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="What an hour of this machine costs.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the sampler to ship and make it the default: the fastest that is good enough, or the best that is fast enough."""
    limits = Limits(distance, accuracy, ms, calls, pixels)
    loaded = [editable(path) for path in bundles]
    compared = [read(bundle) for bundle in loaded]
    for other in compared[1:]:
        if other.evaluator != compared[0].evaluator:
            raise ValueError(
                f"bundles evaluated by {compared[0].evaluator} and by {other.evaluator} do not compare; evaluate both alike"
            )
    candidates = [Candidate(b, name, j) for b, c in zip(loaded, compared, strict=True) for name, j in c.plans.items()]
    chosen = pick(candidates, limits)
    shown = {
        "ship": chosen,
        "default so far": next(
            (c for c in candidates if c.bundle is chosen.bundle and c.plan == c.bundle.manifest.default), None
        ),
        "best": min(candidates, key=lambda c: c.evaluated.distance.mean),
        "fastest": min(candidates, key=lambda c: c.evaluated.p50_ms),
    }
    columns = {title: candidate for title, candidate in shown.items() if candidate}
    with chosen.bundle.edit() as draft:
        draft.manifest.default = chosen.plan
    table("what to ship, and beside what", ["", *columns], _side_by_side(list(columns.values()), price))
    for left in candidates:
        statistic, off = left.evaluated.farthest or ("", 0.0)
        if off > limits.pixels:
            say(f"left out {left.plan}: its pixels are off in {statistic} by {off:.2f} deviations of real images; look at them")
    evaluated = chosen.evaluated
    for line in WATCH:
        show("watch " + line.format(p99=evaluated.p99_ms, rate=evaluated.samples_per_second, distance=evaluated.distance))
    described = {
        title: {"bundle": str(c.bundle.root), "plan": c.plan, **c.evaluated.model_dump(mode="json")}
        for title, c in columns.items()
    }
    finish(described, as_json, f"fewstep generate {chosen.bundle.root.name}")


NAMES = {
    "frechet": "Frechet distance",
    "recall": "recall, the share of real images that are near one made",
    "accuracy": "class accuracy",
    "energy": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "mean": "means off, in deviations",
    "std": "deviations off, in deviations",
}


def _side_by_side(columns: Sequence[Candidate], price: float | None) -> list[list[str]]:
    """A line for each thing to weigh."""
    seconds = [1000 / c.evaluated.samples_per_second for c in columns]
    lines = {
        "plan": [c.plan for c in columns],
        "sampler": [c.bundle.manifest.plans[c.plan].solver for c in columns],
        "graph": [f"{c.evaluated.graph} on {c.evaluated.backend}" for c in columns],
        "network calls": [str(c.evaluated.nfe) for c in columns],
    }
    qualities = [_quality(c.evaluated) for c in columns]
    for i, key in enumerate(SHOWN[columns[0].evaluated.metric].values()):
        lines[NAMES.get(key, key)] = [quality[i] for quality in qualities]
    if all(c.evaluated.farthest for c in columns):
        lines["pixels are farthest off in, deviations of real images"] = [_off(c.evaluated.farthest)[0] for c in columns]
    lines |= {
        "p50, p99 ms": [f"{c.evaluated.p50_ms:.2f}, {c.evaluated.p99_ms:.2f}" for c in columns],
        "samples per second": [f"{c.evaluated.samples_per_second:.0f}" for c in columns],
        "machine seconds per 1,000": [f"{s:.2f}" for s in seconds],
    }
    if price is not None:
        lines["cost per 1,000 samples"] = [f"{s / 3600 * price:.4g}" for s in seconds]
    return [[title, *values] for title, values in lines.items()]


@verb(app, panel=PANEL)
def report(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a compared bundle: images at equal noise, quality, latency, trajectories."""
    from fewstep.evaluation.report import write_report

    write_report(Bundle.load(bundle), out, track=track)
    finish({"out": str(out)}, as_json)
    show(f"wrote {out}")


@verb(app, panel=PANEL)
def tau(
    data: Annotated[str, typer.Option(help="mnist5k, a folder of images, a data set.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory for the trained bundles.")] = Path("taus"),
    value: Annotated[list[float], typer.Option(help="A tau to try; repeat for more. 1, the plain loss, must be one.")] = [  # noqa: B006
        0.5,
        0.9,
        0.99,
        1.0,
    ],
    skip: Annotated[int, typer.Option(help="Levels of 1000 that Lskip looks ahead.")] = 9,
    iterations: Annotated[int, typer.Option(help="Updates of each training run.")] = 500,
    runs: Annotated[int, typer.Option(help="Training runs of each tau.")] = 3,
    solver: Annotated[str, typer.Option(help=f"To evaluate with: {', '.join(SOLVERS)}.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Of the solver.")] = 10,
    samples: Annotated[int, typer.Option(min=10, help="Images to evaluate a run by.")] = 1000,
    features: Annotated[str, typer.Option(help="As for compare.")] = "classifier",
    mixed_precision: MixedPrecision = "auto",
    as_json: Json = False,
) -> None:
    """Which tau to train with, from short runs of equal compute. Stopped, it goes on."""
    from fewstep.data import open_images
    from fewstep.evaluation.features import trial_evaluator
    from fewstep.evaluation.tau import TauConfig, best_tau, search_tau
    from fewstep.trainer.configs import TeacherConfig

    chosen_solver = solver_of(solver)
    check_folder(out)
    teacher = TeacherConfig(iterations=iterations, skip=skip, mixed_precision=mixed_precision)
    config = TauConfig(teacher, tuple(value), runs, steps)
    images = open_images(data, track=track)
    following = telling(images)
    evaluator = trial_evaluator(images, samples, features=features, track=following)
    found = search_tau(out, images, config, chosen_solver, evaluator, track=following)
    chosen = best_tau(found)
    rows = [(f"{tau:g}", str(spread)) for tau, spread in found.items()]
    table(f"Frechet distance, {steps} steps of {solver}, over {runs} training runs", ["tau", "distance"], rows)
    if chosen == 1.0:
        show("no tau beats the plain loss by more than the spread")
    result = {"tau": chosen, "distances": {f"{tau:g}": spread.model_dump() for tau, spread in found.items()}}
    finish(result, as_json, f"fewstep train --data {data} --tau {chosen:g} --out tau{chosen:g}.bundle")


@verb(app, panel=PANEL)
def consistency(
    bundle: BundlePath,
    other: Annotated[Path, typer.Argument(help="A bundle of the same samples from another run.", show_default=False)],
    plan: Annotated[str, typer.Option(help="A plan that both have.")] = "heun18",
    samples: Annotated[int, typer.Option(min=2, help="Noise and condition pairs.")] = 100,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """How alike two runs' images of the same noise are, beside those of unrelated noise."""
    from dataclasses import asdict

    from fewstep.calibration.consistency import consistency
    from fewstep.calibration.teacher import Teacher

    loaded = Bundle.load(bundle), Bundle.load(other)
    plans = loaded[0].plan(plan), loaded[1].plan(plan)
    first, second = (Teacher(b, b.manifest.plans[plan].denoiser) for b in loaded)
    drawn = first.draw(samples, seed=0, arrays=given_arrays(inputs))
    found = consistency((first, second), plans, drawn, track=track)
    rows = [
        ("equal noise", f"{found.cosine:.3f}", f"{found.mse:.4f}"),
        ("unrelated noise", f"{found.unrelated_cosine:.3f}", f"{found.unrelated_mse:.4f}"),
    ]
    table(f"{plan}, {samples} pairs", ["", "cosine similarity", "mean square distance"], rows)
    finish(asdict(found), as_json)

"""Verbs that fit samplers to a network: calibrate, interval, adopt, quantize."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fewstep.artifact.adopt import adopt as take_over
from fewstep.artifact.adopt import mismatch
from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import (
    SOLVERS,
    BundlePath,
    Embeddings,
    Json,
    MixedPrecision,
    Replace,
    Seed,
    app,
    editable,
    finish,
    finite,
    free_name,
    guidance_of,
    precisions,
    solver_of,
    telling,
)
from fewstep.sampling.guidance import PLAIN
from fewstep.system.console import say, show, table, track

__all__ = ["adopt", "calibrate", "interval", "quantize"]


@app.command(rich_help_panel="Fit a sampler to it")
def calibrate(
    bundle: BundlePath,
    method: Annotated[
        str, typer.Option(help="What to fit: table, as a whole, or a solver step by step, such as iia-ddim.")
    ] = "table",
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 4,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="<method><steps>")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="no guidance")] = None,
    lo: Annotated[float, typer.Option(help="With --guidance: guide steps that start above this noise level ...")] = 0.0,
    hi: Annotated[float, typer.Option(help="... and at or below this one.")] = inf,
    data: Annotated[
        str | None,
        typer.Option(
            help="table: real images to come near to: mnist5k, a folder, a data set.",
            show_default="the many-step image of the same noise",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="With --data: in whose features, as for compare, but not of the network that judges; repeat for more.",
            show_default="classifier",
        ),
    ] = None,
    iterations: Annotated[int, typer.Option(help="table: updates of its numbers.")] = 100,
    fine: Annotated[int, typer.Option(help="IIA: fine steps that one fitted step should land on.")] = 10,
    samples: Annotated[int, typer.Option(help="Noise and condition pairs to fit on.")] = 128,
    batch: Annotated[int, typer.Option(help="Samples that the network takes at once.")] = 32,
    precision: MixedPrecision = "auto",
    embeddings: Embeddings = None,
    network: Annotated[str, typer.Option(help="A network of the bundle.")] = "teacher",
    replace: Replace = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a sampler to the teacher: better images from the same few network calls. Stopped, it goes on.

    Reads no data but what --data names: with it, a table comes near to real images.
    """
    from fewstep.calibration.calibrate import FitConfig, TableConfig, calibrate, calibrate_table
    from fewstep.calibration.endtoend import Real
    from fewstep.data import images_like
    from fewstep.data.embeddings import read_embeddings
    from fewstep.evaluation.features import FITTING, feature_network

    guide, loaded = guidance_of(guidance, lo, hi) or PLAIN, editable(bundle)
    name = free_name(loaded, name, f"{method}{steps}", replace=replace)
    if method != "table" and data:
        raise ValueError(f"{method} reads no images; leave out --data, or fit a table")
    if features and not data:
        raise ValueError("--features are those of real images; say with --data which")
    if precision != "auto" and not data:
        raise ValueError("--precision is that of a classifier of real images; say with --data which")
    given = read_embeddings(embeddings) if embeddings else None
    result: dict[str, Any] = {"bundle": str(bundle), "plan": name}
    if method == "table":
        config = TableConfig(steps, guide, iterations, samples, batch=batch, seed=seed)
        real, images = None, images_like(loaded, data, track=track) if data else None
        following = telling(images)
        if images:
            names = features or ["classifier"]
            models = [feature_network(of, images, seed=FITTING, precision=precision, track=following) for of in names]
            real = Real.of(images, *models)
        _, table_fit = calibrate_table(loaded, config, name=name, network=network, real=real, embeddings=given, track=following)
        table(
            "on noise that was not fitted",
            ["", "loss"],
            [("best grid", f"{table_fit.losses[0]:.4g}"), ("fitted", f"{min(table_fit.losses):.4g}")],
        )
        result["losses"] = table_fit.losses
    else:
        solver = FitConfig(method, steps, guide, fine, samples, batch, seed)
        _, fit = calibrate(loaded, solver, name=name, network=network, embeddings=given, track=track)
        rows = [(str(step.row), f"{step.before:.3g}", f"{step.after:.3g}") for step in fit.steps]
        table("mean square distance to the fine target", ["row", "plain", "fitted"], rows)
        result |= {"steps": [s._asdict() for s in fit.steps], "calls": fit.calls}
    finish(result, as_json, f"fewstep export {bundle} --plan {name}")


@app.command(rich_help_panel="Fit a sampler to it")
def interval(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="mnist5k, a folder of images, a data set; training images judge the search.")],
    solver: Annotated[str, typer.Option(help=f"Of {', '.join(SOLVERS)}.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 10,
    guidance: Annotated[list[float], typer.Option(help="Guidance scale to try; repeat for more.")] = [1.5, 2.0, 3.0],  # noqa: B006
    recipe: Annotated[str, typer.Option(help="sweep: where to begin, then where to end; or search, by optuna.")] = "sweep",
    trials: Annotated[int, typer.Option(help="search: guidances to try.")] = 60,
    calls: Annotated[int | None, typer.Option(help="Network calls at most.", show_default=False)] = None,
    features: Annotated[str, typer.Option(help="As for compare, but another network than the one that judges.")] = "classifier",
    samples: Annotated[int, typer.Option(min=10, help="Images for each guidance.")] = 500,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="<solver><steps>_interval")] = None,
    precision: MixedPrecision = "auto",
    embeddings: Embeddings = None,
    network: Annotated[str, typer.Option(help="A network of the bundle.")] = "teacher",
    replace: Replace = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find which steps to guide, and by how much. Stopped, it goes on."""
    from fewstep.calibration.interval import IntervalConfig, calibrate_interval, pareto
    from fewstep.data import images_like
    from fewstep.data.embeddings import read_embeddings
    from fewstep.evaluation.features import trial_judge

    chosen = solver_of(solver)
    config = IntervalConfig(steps, tuple(guidance), cast(Any, recipe), trials, calls, seed)
    loaded = editable(bundle)
    images = images_like(loaded, data, track=track)
    name = free_name(loaded, name, f"{solver}{steps}_interval", replace=replace)
    following = telling(images)
    judge = trial_judge(images, samples, features=features, precision=precision, track=following)
    given = read_embeddings(embeddings) if embeddings else None
    fixed: dict[str, Any] = {"name": name, "network": network, "embeddings": given}
    done, tried = calibrate_interval(loaded, config, chosen, judge, **fixed, track=following)
    rows = [(str(t.nfe), f"{t.value:.2f}", *(_guided(t.steps) if t.steps.weight != 1 else ("", "none"))) for t in pareto(tried)]
    table("what no other guidance beats in both", ["calls", "Frechet", "scale", "guided steps"], rows)
    plan = done.plan(name)
    taken = [row for row, factor in enumerate(plan.guidance) if factor != 1]
    options = _as_options(**done.manifest.provenance.plans[name]["guidance"])
    words = f"{options} guides rows {taken[0]} to {taken[-1]}" if taken else "no guidance"
    show(f"{name} takes {plan.nfe} calls: {words}")
    result = {"bundle": str(bundle), "plan": name, "trials": [asdict(trial) for trial in tried]}
    finish(result, as_json, f"fewstep export {bundle} --plan {name}")


def _as_options(weight: float, lo: float, hi: float | None) -> str:
    """A guidance as other verbs take it."""
    return f"--guidance {weight:.3g}" + (f" --lo {lo:.3g}" if lo else "") + (f" --hi {hi:.3g}" if hi is not None else "")


def _guided(steps: Any) -> tuple[str, str]:
    """Scale and rows of an interval."""
    return f"{steps.weight:.3g}", f"{steps.first} to {steps.last}"


@app.command(rich_help_panel="Fit a sampler to it")
def adopt(
    bundle: BundlePath,
    plan: Annotated[str, typer.Option(help="The plan to take over.", show_default=False)],
    source: Annotated[
        Path | None, typer.Option(help="The bundle that has it.", show_default="the same one, for another guidance")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name here.", show_default="the plan's")] = None,
    network: Annotated[str, typer.Option(help="A network of the bundle.")] = "teacher",
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the plan's guidance")] = None,
    lo: Annotated[float, typer.Option(help="With --guidance: guide steps that start above this noise level ...")] = 0.0,
    hi: Annotated[float, typer.Option(help="... and at or below this one.")] = inf,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Take over a plan that was fitted for another network or guidance, without fitting it again."""
    loaded, guide = editable(bundle), guidance_of(guidance, lo, hi)
    origin = Bundle.load(source) if source else loaded
    origin.pick("plan", plan, origin.manifest.plans)
    name = free_name(loaded, name, plan, replace=replace)
    done = take_over(loaded, origin, plan, name=name, network=network, guidance=guide)
    if warning := mismatch(done, name):
        say(f"warning: {warning}")
    finish({"bundle": str(bundle), "plan": name, "warning": warning}, as_json, f"fewstep export {bundle} --plan {name}")


@app.command(rich_help_panel="Fit a sampler to it")
def quantize(
    bundle: BundlePath,
    plan: Annotated[str | None, typer.Option(help="A plan of the bundle.", show_default="the default")] = None,
    precision: Annotated[str, typer.Option(help="Precisions, commas between.")] = "int8",
    samples: Annotated[int, typer.Option(min=1, help="Images to collect ranges from; drawn from noise, no data is read.")] = 32,
    min_psnr: Annotated[float, typer.Option(callback=finite, help="Leave out layers until this close to fp32, in dB.")] = 40.0,
    embeddings: Embeddings = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Collect what a plan's layers see, row by row, and find those that must stay in higher precision."""
    from fewstep.calibration.ranges import calibrate_ranges
    from fewstep.data.embeddings import read_embeddings

    given = read_embeddings(embeddings) if embeddings else None
    loaded, wanted = editable(bundle), precisions(precision)
    name = plan or loaded.manifest.default
    if name is None:
        raise ValueError(f"{bundle} has no default plan; name one with --plan")
    done = calibrate_ranges(
        loaded, name, wanted, samples=samples, min_psnr_db=min_psnr, seed=seed, embeddings=given, track=track
    )
    ranges = done.ranges(name)
    assert ranges is not None
    rows = [
        (p, f"{ranges.psnr_db[p][0]:.1f}", f"{ranges.psnr_db[p][1]:.1f}", ", ".join(ranges.excluded[p]) or "none")
        for p in wanted
    ]
    table(
        f"{name}: PSNR against fp32 in dB",
        ["precision", "all layers", "without excluded", "excluded, in higher precision"],
        rows,
    )
    result = {"bundle": str(bundle), "plan": name, "excluded": ranges.excluded, "psnr_db": ranges.psnr_db}
    finish(result, as_json, f"fewstep export {bundle} --plan {name} --precision {precision}")

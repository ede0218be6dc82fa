"""Verbs that fit samplers to a network: calibrate, interval, adopt, quantize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.artifact.adopt import adopt as take_over
from fewstep.artifact.adopt import mismatch
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Searched
from fewstep.calibration.configs import FitConfig, IntervalConfig, TableConfig
from fewstep.cli.app import (
    SOLVERS,
    BundlePath,
    Inputs,
    Json,
    MixedPrecision,
    Replace,
    Seed,
    app,
    editable,
    finish,
    finite,
    free_name,
    given_arrays,
    guidance_of,
    precisions,
    solver_of,
    telling,
)
from fewstep.cli.verb import verb
from fewstep.sampling.guidance import Guidance
from fewstep.system.console import say, show, table, track

if TYPE_CHECKING:
    from fewstep.calibration.endtoend import TableFit

__all__ = ["adopt", "calibrate", "interval", "quantize"]

PANEL = "Fit a sampler to it"
Network = Annotated[str, typer.Option(help="A network of the bundle.", hidden=True)]


def _by_method(options: Mapping[str, Any]) -> type:
    return TableConfig if options["method"] in (None, "table") else FitConfig


@verb(
    app,
    panel=PANEL,
    configs=[TableConfig, FitConfig],
    visible=["method", "steps", "guidance", "lo", "hi", "seed"],
    choose=_by_method,
)
def calibrate(
    config: TableConfig | FitConfig,
    bundle: BundlePath,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="<method><steps>")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="table: real samples to come near to: mnist5k, a folder, a data set.",
            show_default="the many-step sample of the same noise",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="With --data: in whose features, as for compare, but not of the network that evaluates; repeat for more.",
            show_default="classifier",
            hidden=True,
        ),
    ] = None,
    mixed_precision: MixedPrecision = "auto",
    inputs: Inputs = None,
    network: Network = "teacher",
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Fit a sampler to the teacher: better samples from the same few network calls. Stopped, it goes on.

    Reads no data but what --data names: with it, a table comes near to real samples.
    """
    loaded = editable(bundle)
    name = free_name(loaded, name, f"{config.method}{config.steps}", replace=replace)
    if config.method != "table" and data:
        raise ValueError(f"{config.method} reads no samples; leave out --data, or fit a table")
    if features and not data:
        raise ValueError("--features are those of real samples; say with --data which")
    if mixed_precision != "auto" and not data:
        raise ValueError("--mixed-precision is that of a classifier of real images; say with --data which")
    about: dict[str, Any] = {"name": name, "network": network, "arrays": given_arrays(inputs)}
    if isinstance(config, TableConfig):
        found = _table(loaded, config, data, features, mixed_precision, about)
    else:
        found = _solver(loaded, config, about)
    finish({"bundle": str(bundle), "plan": name, **found}, as_json, f"fewstep export {bundle} --plan {name}")


def _table(
    loaded: Bundle,
    config: TableConfig,
    data: str | None,
    features: list[str] | None,
    precision: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Fit a table, and show its losses."""
    from fewstep.calibration.calibrate import calibrate_table
    from fewstep.calibration.endtoend import Real
    from fewstep.data import images_like
    from fewstep.data.arrays import arrays_like, is_arrays
    from fewstep.evaluation.features import FITTING, feature_network

    if data and is_arrays(Path(data)):
        arrays = arrays_like(loaded, data)
        if features or precision != "auto":
            raise ValueError("arrays are fitted to by their own numbers; leave out --features and --mixed-precision")
        about = {**about, "arrays": about["arrays"] or arrays.arrays or None}
        return _fitted(calibrate_table(loaded, config, real=Real.of_arrays(arrays), **about, track=telling(arrays))[1])
    real, images = None, images_like(loaded, data, track=track) if data else None
    following = telling(images)
    if images:
        names = features or ["classifier"]
        models = [feature_network(of, images, seed=FITTING, precision=precision, track=following) for of in names]
        real = Real.of(images, *models)
    return _fitted(calibrate_table(loaded, config, real=real, **about, track=following)[1])


def _fitted(fit: TableFit) -> dict[str, Any]:
    """Show what a table came to."""
    rows = [("best grid", f"{fit.losses[0]:.4g}"), ("fitted", f"{min(fit.losses):.4g}")]
    table("on noise that was not fitted", ["", "loss"], rows)
    return {"losses": fit.losses}


def _solver(loaded: Bundle, config: FitConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    """Fit a solver's steps, and show what each gains."""
    from fewstep.calibration.calibrate import calibrate

    _, fit = calibrate(loaded, config, **about, track=track)
    rows = [(str(step.row), f"{step.before:.3g}", f"{step.after:.3g}") for step in fit.steps]
    table("mean square distance to the fine target", ["row", "plain", "fitted"], rows)
    return {"steps": [step._asdict() for step in fit.steps], "calls": fit.calls}


@verb(app, panel=PANEL, configs=[IntervalConfig], visible=["steps", "guidance", "recipe", "calls"])
def interval(
    config: IntervalConfig,
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="mnist5k, a folder of images, a data set; training images evaluate the search.")],
    solver: Annotated[str, typer.Option(help=f"Of {', '.join(SOLVERS)}.")] = "ddim",
    features: Annotated[
        str, typer.Option(help="As for compare, but another network than the one that evaluates.", hidden=True)
    ] = "classifier",
    samples: Annotated[int, typer.Option(min=10, help="Images for each guidance.")] = 500,
    name: Annotated[str | None, typer.Option(help="Name of the new plan.", show_default="<solver><steps>_interval")] = None,
    mixed_precision: MixedPrecision = "auto",
    inputs: Inputs = None,
    network: Network = "teacher",
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Find which steps to guide, and by how much. Stopped, it goes on."""
    from fewstep.calibration.interval import calibrate_interval, pareto
    from fewstep.data import images_like
    from fewstep.evaluation.features import trial_evaluator

    chosen, loaded = solver_of(solver), editable(bundle)
    images = images_like(loaded, data, track=track)
    name = free_name(loaded, name, f"{solver}{config.steps}_interval", replace=replace)
    following = telling(images)
    evaluator = trial_evaluator(images, samples, features=features, precision=mixed_precision, track=following)
    fixed: dict[str, Any] = {"name": name, "network": network, "arrays": given_arrays(inputs)}
    done, tried = calibrate_interval(loaded, config, chosen, evaluator, **fixed, track=following)
    rows = [(str(t.nfe), f"{t.value:.2f}", *(_guided(t.steps) if t.steps.scale != 1 else ("", "none"))) for t in pareto(tried)]
    table("what no other guidance beats in both", ["calls", "Frechet", "scale", "guided steps"], rows)
    plan, record = done.plan(name), done.manifest.records.plans[name]
    taken = [row for row, factor in enumerate(plan.guidance) if factor != 1]
    assert isinstance(record, Searched)
    words = f"{_as_options(Guidance.of(record.guidance))} guides rows {taken[0]} to {taken[-1]}" if taken else "no guidance"
    show(f"{name} takes {plan.nfe} calls: {words}")
    result = {"bundle": str(bundle), "plan": name, "trials": [asdict(trial) for trial in tried]}
    finish(result, as_json, f"fewstep export {bundle} --plan {name}")


def _as_options(guide: Guidance) -> str:
    """A guidance as other verbs take it."""
    lo, hi = f" --lo {guide.lo:.3g}" if guide.lo else "", f" --hi {guide.hi:.3g}" if guide.hi < inf else ""
    return f"--guidance {guide.scale:.3g}{lo}{hi}"


def _guided(steps: Any) -> tuple[str, str]:
    """Scale and rows of an interval."""
    return f"{steps.scale:.3g}", f"{steps.first} to {steps.last}"


@verb(app, panel=PANEL)
def adopt(
    bundle: BundlePath,
    plan: Annotated[str, typer.Option(help="The plan to take over.", show_default=False)],
    source: Annotated[
        Path | None, typer.Option(help="The bundle that has it.", show_default="the same one, for another guidance")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name here.", show_default="the plan's")] = None,
    network: Network = "teacher",
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
    done = take_over(loaded, origin, plan, name=name, denoiser=network, guidance=guide)
    if warning := mismatch(done, name):
        say(f"warning: {warning}")
    finish({"bundle": str(bundle), "plan": name, "warning": warning}, as_json, f"fewstep export {bundle} --plan {name}")


@verb(app, panel=PANEL)
def quantize(
    bundle: BundlePath,
    plan: Annotated[str | None, typer.Option(help="A plan of the bundle.", show_default="the default")] = None,
    precision: Annotated[str, typer.Option(help="Precisions, commas between.")] = "int8",
    samples: Annotated[int, typer.Option(min=1, help="Images to collect ranges from; drawn from noise, no data is read.")] = 32,
    min_psnr: Annotated[float, typer.Option(callback=finite, help="Leave out layers until this close to fp32, in dB.")] = 40.0,
    inputs: Inputs = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Collect what a plan's layers see, row by row, and find those that must stay in higher precision."""
    from fewstep.calibration.ranges import calibrate_ranges

    loaded, wanted = editable(bundle), precisions(precision)
    name = plan or loaded.manifest.default
    if name is None:
        raise ValueError(f"{bundle} has no default plan; name one with --plan")
    done = calibrate_ranges(
        loaded, name, wanted, samples=samples, min_psnr_db=min_psnr, seed=seed, arrays=given_arrays(inputs), track=track
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

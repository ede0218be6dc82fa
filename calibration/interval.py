"""Where guidance pays: which steps to guide, and how much. Kynkaanniemi et al. 2024, arXiv 2404.07724.

An interval begins and ends at levels of the grid, for a step is guided as a whole: it is a first and a last guided step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import model_digest
from fewstep.artifact.manifest import PlanEntry, check_name
from fewstep.artifact.records import Searched
from fewstep.calibration.configs import IntervalConfig
from fewstep.calibration.inputs import Drawn
from fewstep.calibration.teacher import Teacher
from fewstep.data.inputs import Arrays
from fewstep.evaluation.cache import Cache, arrays_digest, default_folder
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.guidance import PLAIN, Guidance, mix
from fewstep.sampling.plan import Plan, trajectory
from fewstep.sampling.schedule import Grid
from fewstep.system.progress import Track, silent

__all__ = [
    "Steps",
    "Trial",
    "calibrate_interval",
    "interval",
    "pareto",
    "search",
    "similarity",
    "sweep",
]


class Steps(NamedTuple):
    """Guide the steps first .. last of a grid, by a scale."""

    first: int
    last: int
    scale: float


@dataclass(frozen=True)
class Trial:
    """What a guidance came to.

    Args:
        steps: that were guided.
        value: a metric where lower is better.
        nfe: network calls for an image.
    """

    steps: Steps
    value: float
    nfe: int


Evaluate = Callable[[Steps], Trial]


def calibrate_interval(
    bundle: Bundle,
    config: IntervalConfig,
    solver: Callable[[Grid, Guidance], Plan],
    evaluator: ImageEvaluator,
    *,
    name: str,
    network: str = "teacher",
    arrays: Arrays | None = None,
    cache: Path | None = None,
    track: Track = silent,
) -> tuple[Bundle, list[Trial]]:
    """Search the guidance of a solver on the usual grid that comes nearest to the evaluator's images; add the plan `name`.

    The evaluator must not be the one that results are reported in: its images are what the choice is made on. Trials are
    cached, so a stopped search goes on. All trials and the similarity of both estimates at every row go into the plan's record.

    Args:
        bundle: with the network.
        config: of the search.
        solver: writes plans without noise on the way.
        evaluator: with the images to come near to.
        name: of the new plan; one that is there is replaced.
        network: by name.
        arrays: what samples are made from, in place of the classes of the evaluator's images.
        cache: a directory; that of the user unless given.
        track: shows progress.

    Returns:
        The bundle as it is then, and all trials.

    Raises:
        ValueError: when the bundle has no such network or condition, or the solver alone takes more calls than allowed.
    """
    check_name(name)
    if not bundle.manifest.signature.guidable:
        raise ValueError(f"{bundle.root.name} has no input that means none, so there is nothing to guide")
    teacher = Teacher(bundle, network)
    grid = teacher.denoiser.parametrisation.grid(config.steps)
    least, most = solver(grid, PLAIN).nfe, config.calls or np.inf
    if most < least:
        raise ValueError(
            f"{config.steps} steps take {least} calls without any guidance; allow more than {most}, or take fewer steps"
        )
    inputs = teacher.draw(evaluator.n, seed=config.seed, labels=None if arrays else evaluator.labels, arrays=arrays)
    asked: dict[str, Any] = {
        "evaluator_sha256": evaluator.digest(),
        "network_sha256": model_digest(bundle.manifest, network),
        "inputs_sha256": arrays_digest(arrays) if arrays else None,
    }
    searched = {"solver": solver.__name__, "steps": config.steps, "seed": config.seed}
    kept = Cache(cache or default_folder(), "interval", asked | searched)
    known: dict[str, float] = kept.read() or {}

    def evaluate(steps: Steps) -> Trial:
        plan = solver(grid, interval(grid, steps))
        key = f"{steps.first} {steps.last} {steps.scale!r}"
        if key not in known:
            known[key] = evaluator.distance(teacher.outputs(plan, inputs))
            kept.write(known)
        return Trial(steps, known[key], plan.nfe)

    trials = _trials(grid, config, evaluate, track)
    first, last, scale = best = min((trial for trial in trials if trial.nfe <= most), key=lambda trial: trial.value).steps
    plan = solver(grid, interval(grid, best))
    found: dict[str, Any] = {
        "guidance": interval(grid, best).settings(),
        "levels": [level if np.isfinite(level) else None for level in grid.levels],
        "similarity": similarity(teacher, plan, inputs[: teacher.batch].to(teacher.device)),
        "trials": [trial.steps._asdict() | {"value": trial.value, "nfe": trial.nfe} for trial in trials],
    }
    with bundle.edit() as draft:
        title = f"{solver.__name__}, {config.steps} steps, {first} to {last} guided by {scale:.3g}"
        draft.manifest.plans[name] = PlanEntry.of(plan, denoiser=network, solver=title)
        settings = asdict(config) | {"solver": solver.__name__}
        draft.manifest.records.plans[name] = Searched(settings=settings, **asked, **found)
    return Bundle.load(bundle.root), trials


def _trials(grid: Grid, config: IntervalConfig, evaluate: Evaluate, track: Track) -> list[Trial]:
    """All that a recipe tries, without guidance first."""
    trials = [evaluate(Steps(0, grid.n - 1, 1.0))]
    if config.recipe == "sweep":
        return trials + sweep(grid, config.guidance, evaluate, track=track)
    return trials + search(grid, max(config.guidance), evaluate, trials=config.trials, seed=config.seed, track=track)


def interval(grid: Grid, steps: Steps) -> Guidance:
    """The guidance of these steps of a grid. Its bounds lie between levels, so that they may be rounded.

    Args:
        grid: of the plan that is guided.
        steps: which of them.
    """
    levels = grid.levels
    hi = _between(levels[steps.first - 1], levels[steps.first]) if steps.first else inf
    return Guidance(steps.scale, _between(levels[steps.last], levels[steps.last + 1]), hi)


def _between(above: float, below: float) -> float:
    """Halfway on a log scale, or twice the lower level where the upper one is pure noise."""
    return float(np.sqrt(above * below)) if np.isfinite(above) else 2 * float(below)


def sweep(grid: Grid, scales: Sequence[float], evaluate: Evaluate, *, track: Track = silent) -> list[Trial]:
    """The paper's recipe for each scale: everything below hi for every hi, then every lo at the best hi.

    Args:
        grid: of the plans.
        scales: of guidance, above 1.
        evaluate: what a guidance comes to.
        track: shows progress.

    Returns:
        All trials in their order: at most 2 n - 1 for each scale and grid of n steps.
    """
    trials: list[Trial] = []
    for scale in scales:
        below = [evaluate(Steps(first, grid.n - 1, scale)) for first in track(range(grid.n), f"{scale:g}: first guided step")]
        best = min(range(grid.n), key=lambda first: below[first].value)
        ends = range(best, grid.n - 1)
        trials += below + [evaluate(Steps(best, last, scale)) for last in track(ends, f"{scale:g}: last guided step")]
    return trials


def search(
    grid: Grid, most: float, evaluate: Evaluate, *, trials: int = 60, seed: int = 0, track: Track = silent
) -> list[Trial]:
    """Scales in 1 .. most and intervals together, by optuna's multi-objective TPE on the metric and the network calls.

    Args:
        grid: of the plans.
        most: the largest scale.
        evaluate: what a guidance comes to.
        trials: how many.
        seed: of the sampler.
        track: shows progress.

    Returns:
        All trials in their order.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed))
    found = []
    for _ in track(range(trials), "search intervals"):
        trial = study.ask()
        first = trial.suggest_int("first", 0, grid.n - 1)
        last = min(first + trial.suggest_int("more", 0, grid.n - 1), grid.n - 1)
        found.append(evaluate(Steps(first, last, trial.suggest_float("scale", 1.0, most))))
        study.tell(trial, (found[-1].value, found[-1].nfe))
    return found


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both, from few calls to many."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.nfe, t.value)):
        if not front or trial.value < front[-1].value:
            front.append(trial)
    return front


def similarity(teacher: Teacher, plan: Plan, inputs: Drawn) -> list[float]:
    """Mean cosine similarity of the conditional and the unconditional estimate D along a plan, one for each row.

    At 0.99 and above guidance hardly changes anything.

    Args:
        teacher: the network.
        plan: without noise on the way.
        inputs: on the teacher's device, with what means "none".
    """
    rows: list[float] = []

    def denoise(x: torch.Tensor, sigma: float, scale: float = 1.0, **told: float) -> torch.Tensor:
        conditional, unconditional = (teacher.denoiser(x, sigma, *c, **told) for c in (inputs.condition, inputs.null))
        rows.append(float(cosine_similarity(conditional.flatten(1), unconditional.flatten(1)).mean()))
        made: torch.Tensor = mix(conditional, unconditional, scale)
        return made

    with torch.no_grad():
        for _ in trajectory(denoise, plan.begin(inputs.noise[:, 0]), plan):
            pass
    return rows

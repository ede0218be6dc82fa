"""Where guidance pays: which steps to guide, and how much. Kynkaanniemi et al. 2024, arXiv 2404.07724.

An interval begins and ends at levels of the grid, for a step is guided as a whole: it is a first and a last guided step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from fewstep.calibration.inputs import Inputs
from fewstep.calibration.teacher import Teacher
from fewstep.guidance import Guidance, mix
from fewstep.plan import Plan, trajectory
from fewstep.progress import Track, silent
from fewstep.schedule import Grid

__all__ = ["Trial", "interval", "pareto", "search", "similarity", "sweep"]


@dataclass(frozen=True)
class Trial:
    """What a guidance came to: a metric where lower is better, and the network calls for an image."""

    guidance: Guidance
    value: float
    nfe: int


Evaluate = Callable[[Guidance], Trial]


def interval(grid: Grid, first: int, last: int, weight: float) -> Guidance:
    """Guidance of the steps first .. last of a grid."""
    levels = grid.levels
    return Guidance(weight, float(levels[last + 1]), float(levels[first]))


def sweep(grid: Grid, weights: Sequence[float], evaluate: Evaluate, *, track: Track = silent) -> list[Trial]:
    """The paper's recipe for each weight: everything below hi for every hi, then every lo at the best hi.

    All trials in their order, at most 2 n - 1 for each weight and grid of n steps.
    """
    trials: list[Trial] = []
    for j in track(range(len(weights)), "sweep intervals"):
        below = [evaluate(interval(grid, first, grid.n - 1, weights[j])) for first in range(grid.n)]
        best = min(range(grid.n), key=lambda first: below[first].value)
        trials += below + [evaluate(interval(grid, best, last, weights[j])) for last in range(best, grid.n - 1)]
    return trials


def search(
    grid: Grid, most: float, evaluate: Evaluate, *, trials: int = 60, seed: int = 0, track: Track = silent
) -> list[Trial]:
    """Weights in 1 .. most and intervals together, by optuna's multi-objective TPE on the metric and the network calls."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed))
    found = []
    for _ in track(range(trials), "search intervals"):
        trial = study.ask()
        first = trial.suggest_int("first", 0, grid.n - 1)
        last = min(first + trial.suggest_int("more", 0, grid.n - 1), grid.n - 1)
        found.append(evaluate(interval(grid, first, last, trial.suggest_float("weight", 1.0, most))))
        study.tell(trial, (found[-1].value, found[-1].nfe))
    return found


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both, from few calls to many."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.nfe, t.value)):
        if not front or trial.value < front[-1].value:
            front.append(trial)
    return front


def similarity(teacher: Teacher, plan: Plan, inputs: Inputs) -> list[float]:
    """Mean cosine similarity of the conditional and the unconditional estimate D along a plan, one for each row.

    At 0.99 and above guidance hardly changes anything.
    """
    rows: list[float] = []

    def denoise(x: torch.Tensor, sigma: float, weight: float = 1.0) -> torch.Tensor:
        conditional, unconditional = (teacher.denoiser(x, sigma, *c) for c in (inputs.condition, inputs.null))
        rows.append(float(cosine_similarity(conditional.flatten(1), unconditional.flatten(1)).mean()))
        made: torch.Tensor = mix(conditional, unconditional, weight)
        return made

    with torch.no_grad():
        for _ in trajectory(denoise, float(plan.sigmas[0]) * inputs.noise[:, 0], plan):
            pass
    return rows

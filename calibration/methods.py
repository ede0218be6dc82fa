"""Which terms IIA adds to the steps of which solver. Zhang et al. 2024, arXiv 2304.11328.

A term is a row of a plan: how much of every state x_j and every estimate D_j it takes, (2, n). So is what a solver's step makes
of them, and what the noise e and the image X that the step believes in are follows from its row alone:

    x' = alpha' X + sigma' e,  x = alpha X + sigma e
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Floats, Plan
from fewstep.sampling.schedule import Grid
from fewstep.sampling.solvers import ddim, dpmpp_2m, heun, ipndm, spndm

__all__ = ["METHODS", "Landing", "Method", "landings"]


class Landing(NamedTuple):
    """A step of a solver: it leaves state `start` and ends with the row `row`; the rows between are its predictors."""

    start: int
    row: int


@dataclass(frozen=True)
class Method:
    """A solver and the terms of its steps.

    Args:
        title: in words.
        solver: writes the plan that is corrected.
        terms: of the plan, its steps and the number of one: terms (2, n) for that step, of which there may be none.
    """

    title: str
    solver: Callable[[Grid, Guidance], Plan]
    terms: Callable[[Plan, list[Landing], int], list[Floats]]


def landings(plan: Plan) -> list[Landing]:
    """The steps of a plan. A row that ends where the next one ends as well is a predictor."""
    found, start = [], 0
    for row in range(plan.rows):
        if row + 1 == plan.rows or (plan.alphas[row + 1], plan.sigmas[row + 1]) != (plan.alphas[row + 2], plan.sigmas[row + 2]):
            found.append(Landing(start, row))
            start = row + 1
    return found


def _row(plan: Plan, k: int) -> Floats:
    return np.stack([plan.a[k], plan.b[k]])


def _state(plan: Plan, j: int) -> Floats:
    term = np.zeros((2, plan.rows))
    term[0, j] = 1
    return term


def _estimate(plan: Plan, j: int) -> Floats:
    term = np.zeros((2, plan.rows))
    term[1, j] = 1
    return term


def _eps(plan: Plan, j: int) -> Floats:
    eps: Floats = (_state(plan, j) - plan.alphas[j] * _estimate(plan, j)) / plan.sigmas[j]
    return eps


def _belief(plan: Plan, step: Landing) -> tuple[Floats, Floats]:
    """X and e of a step."""
    before, after = _state(plan, step.start), _row(plan, step.row)
    alpha, sigma = plan.alphas[step.start], plan.sigmas[step.start]
    if alpha == 0:  # pure noise
        e = before / sigma
        return (after - plan.sigmas[step.row + 1] * e) / plan.alphas[step.row + 1], e
    ratio = plan.alphas[step.row + 1] / alpha
    e = (after - ratio * before) / (plan.sigmas[step.row + 1] - ratio * sigma)
    return (before - sigma * e) / alpha, e


def _changes(plan: Plan, steps: list[Landing], i: int) -> list[Floats]:
    """Eq. 14 and appendix: what changed in X and in e since the step before."""
    if i == 0:
        return []
    (image, noise), (image_before, noise_before) = (_belief(plan, step) for step in (steps[i], steps[i - 1]))
    return [image - image_before, noise - noise_before]


def _noise(plan: Plan, steps: list[Landing], i: int) -> list[Floats]:
    """The guided form: the noise itself."""
    return [_eps(plan, steps[i].start)]


def _state_and_estimate(plan: Plan, steps: list[Landing], i: int) -> list[Floats]:
    return [_state(plan, steps[i].start), _estimate(plan, steps[i].start)] if i else []


def _increments(plan: Plan, steps: list[Landing], i: int) -> list[Floats]:
    """BIIA-EDM with r = 1: this step's whole increment and the one before."""
    if not 0 < i < len(steps) - 1:
        return []
    return [_row(plan, step.row) - _state(plan, step.start) for step in (steps[i], steps[i - 1])]


def _slopes(plan: Plan, steps: list[Landing], i: int) -> list[Floats]:
    """IIA-EDM with r = 1: the noise at the start and the estimate's change up to the predictor, now and one step before."""
    if not 0 < i < len(steps) - 1:
        return []
    starts = [step.start for step in (steps[i], steps[i - 1])]
    noise = [_eps(plan, j) for j in starts]
    return noise + [_estimate(plan, j) - _estimate(plan, j + 1) for j in starts]


METHODS = {
    "iia-ddim": Method("IIA-DDIM", ddim, _changes),
    "iia-ddim-guided": Method("IIA-DDIM, guided form", ddim, _noise),
    "iia-dpmpp-2m": Method("IIA-DPM-Solver++(2M)", dpmpp_2m, _state_and_estimate),
    "iia-spndm": Method("IIA-S-PNDM", spndm, _changes),
    "iia-ipndm": Method("IIA-iPNDM", ipndm, _changes),
    "biia-edm": Method("BIIA-EDM", heun, _increments),
    "iia-edm": Method("IIA-EDM", heun, _slopes),
}

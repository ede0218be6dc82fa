"""IIA: improved integration approximation. Zhang et al. 2024, arXiv 2304.11328.

The solver keeps its steps and gains a few scalars per step, fitted by least squares so that one coarse step lands where
several fine steps of the same solver from the same state land.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.calibration.methods import Landing, Method, landings
from fewstep.sampling.guidance import PLAIN, Guidance
from fewstep.sampling.plan import Array, Denoise, Floats, Plan, advance, sample
from fewstep.sampling.schedule import Grid, to_edm
from fewstep.system.progress import Track, silent

__all__ = ["Fit", "Part", "StepFit", "fit"]

RANK = 1e-4


class Part(NamedTuple):
    """Some of the samples to fit on, as many as the network takes at once: states sigma_0 * noise (B, C, H, W)."""

    denoise: Denoise
    x: Tensor


class StepFit(NamedTuple):
    """A fitted step: the row it ends with, its coefficients, and the mean square distance to the fine target."""

    row: int
    coefficients: list[float]
    before: float
    after: float


@dataclass(frozen=True)
class Fit:
    """A fitted plan.

    Args:
        plan: its numbers.
        steps: those that were fitted.
        calls: network evaluations that one sample cost; steps that were known cost fewer.
    """

    plan: Plan
    steps: list[StepFit]
    calls: int


def fit(
    method: Method,
    grid: Grid,
    parts: Sequence[Part],
    *,
    guidance: Guidance = PLAIN,
    fine: int = 10,
    coordinates: Callable[[Grid], Grid] = to_edm,
    known: Sequence[StepFit] = (),
    fitted: Callable[[list[StepFit]], None] = lambda _: None,
    total: Callable[[Floats], Floats] = lambda sums: sums,
    track: Track = silent,
) -> Fit:
    """Fit a method's terms, step by step, on the trajectory that the corrections before already produce.

    Fitting on the plain trajectory diverges. The target of a step is `fine` steps of the same solver from the same state, even
    in both coordinates, guided as the step is.

    Args:
        method: the solver and its terms.
        grid: in the coordinates of the model.
        parts: the samples of this process.
        guidance: by noise level.
        fine: steps that a fitted one should land on.
        coordinates: brings a grid into those of the model.
        known: steps fitted earlier, which are taken as they are.
        fitted: told all steps after each one, to go on from there after a stop.
        total: adds sums up over the processes that share the samples.
        track: shows progress.
    """
    base = plan = method.solver(grid, guidance)
    steps, done = landings(base), {step.row: step for step in known}
    tracks = [_Walk(part) for part in parts]
    results: list[StepFit] = []
    with torch.no_grad():
        for i in track(range(len(steps)), f"fit {method.title}"):
            terms = method.terms(base, steps, i)
            for walk in tracks:
                walk.arrive(plan, steps[i])
            if terms:
                fine_plan = _fine(method, grid, i, float(base.guidance[steps[i].row]), fine, coordinates)
                row = steps[i].row
                result = done.get(row) or _step(plan, steps[i], terms, fine_plan, tracks, total)
                a, b = plan.a.copy(), plan.b.copy()
                for p, term in zip(result.coefficients, terms, strict=True):
                    a[row] += p * term[0]
                    b[row] += p * term[1]
                plan = replace(plan, a=a, b=b)
                results.append(result)
                fitted(results)
            for walk in tracks:
                walk.leave(plan, steps[i])
    return Fit(plan, results, sum(walk.calls for walk in tracks) // max(len(tracks), 1))


class _Walk:
    """States and estimates of one part, as far as it has come."""

    def __init__(self, part: Part) -> None:
        self.denoise, self.states = part.denoise, [part.x]
        self.estimates: list[Tensor] = []
        self.calls = 0

    def arrive(self, plan: Plan, step: Landing) -> None:
        """Evaluate the network in all rows of a step."""
        for k in range(step.start, step.row + 1):
            if k > step.start:
                self.states.append(advance(plan, k - 1, self.states, self.estimates))
            self.estimates.append(self.evaluate(self.states[k], float(plan.sigmas[k]), float(plan.guidance[k])))

    def leave(self, plan: Plan, step: Landing) -> None:
        """Make the step."""
        self.states.append(advance(plan, step.row, self.states, self.estimates))

    def evaluate(self, x: Array, sigma: float, scale: float = 1.0) -> Array:
        """The denoiser, counted."""
        self.calls += 1 + (scale != 1)
        return self.denoise(x, sigma) if scale == 1 else self.denoise(x, sigma, scale)


def _fine(method: Method, grid: Grid, i: int, scale: float, fine: int, coordinates: Callable[[Grid], Grid]) -> Plan:
    """Fine steps from level i to level i + 1, all guided as the coarse one."""
    between = Grid(*(np.linspace(values[i], values[i + 1], fine + 1) for values in (grid.alphas, grid.sigmas)))
    return method.solver(coordinates(between), Guidance(scale, 0.0, inf))


def _step(
    plan: Plan,
    step: Landing,
    terms: Sequence[Floats],
    fine: Plan,
    walks: Sequence[_Walk],
    total: Callable[[Floats], Floats],
) -> StepFit:
    """Coefficients p with the smallest |target - step - sum_i p_i term_i|^2 over all pixels of all parts, in float64."""
    count = len(terms)
    sums = np.zeros((count + 1, count + 2))  # the Gram matrix of terms and what is missing; the number of pixels
    for walk in walks:
        target = sample(walk.evaluate, walk.states[step.start], fine)
        missing = target - advance(plan, step.row, walk.states, walk.estimates)
        vectors = [_combine(term, walk) for term in terms]
        q = torch.stack([v.double().flatten() for v in (*vectors, missing)])
        sums[:, :-1] += (q @ q.T).cpu().numpy()
        sums[0, -1] += missing.numel()
    sums = total(sums)
    gram, projection, square = sums[:count, :count], sums[:count, count], sums[count, count]
    p = _least_squares(gram, projection)
    left = square - 2 * p @ projection + p @ gram @ p
    pixels = sums[0, -1]
    return StepFit(step.row, p.tolist(), float(square / pixels), max(float(left / pixels), 0.0))


def _combine(term: Floats, walk: _Walk) -> Tensor:
    values = [*walk.states, *walk.estimates]
    factors = [*term[0, : len(walk.states)], *term[1, : len(walk.estimates)]]
    return torch.stack([float(f) * v for f, v in zip(factors, values, strict=True) if f]).sum(0)


def _least_squares(gram: Floats, projection: Floats) -> Floats:
    """p of gram p = projection, where directions that are nearly the same share their part.

    After a plain DDIM step the two directions are the same but for their length, eps_k - eps_{k-1} = (D_{k-1} - D_k) / sigma_k.
    Scaled to length 1, what differs by less than about RANK^0.5 is taken for the same and shared by both coefficients; to fit
    it would be to fit rounding, with coefficients in the thousands that fp16 and even fp32 graphs cannot follow.
    """
    length = np.sqrt(np.diag(gram)).clip(min=np.finfo(np.float64).tiny)
    unit = gram / length / length[:, None]
    solution: Floats = np.linalg.lstsq(unit, projection / length, rcond=RANK)[0] / length
    return solution

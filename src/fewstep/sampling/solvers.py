"""Solvers write Plans. Each takes a grid in the model's own coordinates and a guidance; none of them sees a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewstep.sampling.guidance import PLAIN, Guidance
from fewstep.sampling.parametrisation import Parametrisation
from fewstep.sampling.plan import Floats, Plan
from fewstep.sampling.schedule import Grid

__all__ = ["ddim", "dpmpp_2m", "few_step", "heun", "ipndm", "moved", "scaled", "spndm"]

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # Adams-Bashforth


def ddim(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """x' = alpha' D + sigma' eps; Euler in EDM and flow coordinates. Song et al. 2021, eq. 12 with eta = 0. Order 1.

    Args:
        grid: in the coordinates of the network.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan of grid.n rows.
    """
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    return Plan(
        alphas=grid.alphas,
        sigmas=grid.sigmas,
        a=np.diag(ratio),
        b=np.diag(grid.alphas[1:] - grid.alphas[:-1] * ratio),
        c=np.zeros(grid.n),
        guidance=guidance.at(grid.levels[:-1]),
    )


def heun(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """Euler to the next level, then the mean of both slopes; a step to sigma = 0 stays Euler. 2 n - 1 rows, or 2 n, order 2.

    The slope is D dalpha + eps dsigma with eps = (x - alpha D) / sigma, which is Karras et al. 2022, algorithm 1, in EDM
    coordinates and Heun in t for flows. The correction shares the guidance of the step it belongs to (its start).

    Args:
        grid: in the coordinates of the network.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan; of 2 n rows where the grid ends above sigma = 0.
    """
    corrected = [i for i in range(grid.n) if grid.sigmas[i + 1] > 0]
    rows = grid.n + len(corrected)
    a, b, weights = np.zeros((rows, rows)), np.zeros((rows, rows)), np.ones(rows)
    alphas, sigmas = [grid.alphas[0]], [grid.sigmas[0]]
    k = 0
    for i, weight in enumerate(guidance.at(grid.levels[:-1])):
        d_alpha, d_sigma = grid.alphas[i + 1] - grid.alphas[i], grid.sigmas[i + 1] - grid.sigmas[i]
        start = d_sigma / grid.sigmas[i]
        a[k, k], b[k, k] = 1 + start, d_alpha - grid.alphas[i] * start
        weights[k] = weight
        k += 1
        if i in corrected:
            end = d_sigma / grid.sigmas[i + 1]
            a[k, k - 1 : k + 1] = 1 + start / 2, end / 2
            b[k, k - 1 : k + 1] = (d_alpha - grid.alphas[i] * start) / 2, (d_alpha - grid.alphas[i + 1] * end) / 2
            weights[k] = weight
            k += 1
        copies = k + 1 - len(sigmas)
        alphas += [grid.alphas[i + 1]] * copies
        sigmas += [grid.sigmas[i + 1]] * copies
    return Plan(np.array(alphas), np.array(sigmas), a, b, np.zeros(rows), weights)


def dpmpp_2m(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """DPM-Solver++(2M): exponential integrator in log(alpha / sigma), multistep. Lu et al. 2022, algorithm 2. Order 2.

    First order on the first step and on a step to sigma = 0, where the half log-SNR step is infinite.

    Args:
        grid: in the coordinates of the network.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan of grid.n rows.
    """
    n = grid.n
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(grid.alphas) - np.log(grid.sigmas))
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    gain: Floats = grid.alphas[1:] - grid.alphas[:-1] * ratio  # alpha' (1 - e^-h)
    b = np.zeros((n, n))
    for k in range(n):
        back = h[k] / h[k - 1] / 2 if k and np.isfinite(h[k]) else 0.0
        b[k, k] = gain[k] * (1 + back)
        if back:
            b[k, k - 1] = -gain[k] * back
    return Plan(grid.alphas, grid.sigmas, np.diag(ratio), b, np.zeros(n), guidance.at(grid.levels[:-1]))


def ipndm(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """DDIM with the noise extrapolated from up to four estimates. Zhang and Chen 2023 (iPNDM), after Liu et al. 2022, eq. 9.

    Args:
        grid: in the coordinates of the network.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan of grid.n rows.
    """
    n = grid.n
    a, b = np.zeros((n, n)), np.zeros((n, n))
    for k in range(n):
        adams = ADAMS[min(k, len(ADAMS) - 1)]
        a[k], b[k] = _transfer(grid.alphas, grid.sigmas, k, k, {k - j: weight for j, weight in enumerate(adams)})
    return Plan(grid.alphas, grid.sigmas, a, b, np.zeros(n), guidance.at(grid.levels[:-1]))


def spndm(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """DDIM with the noise extrapolated from two estimates; the first step takes the mean of the noise at its two ends.

    Liu et al. 2022, eq. 12 and 13 (S-PNDM).

    Args:
        grid: in the coordinates of the network, from a level below pure noise.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan of grid.n + 1 rows.

    Raises:
        ValueError: where the grid starts from pure noise (alpha = 0), a state that says nothing of x0, so that the first step
            has no mean; or for a single step to clean data.
    """
    if grid.alphas[0] == 0:
        raise ValueError("S-PNDM cannot start from pure noise (alpha = 0); start the grid below it, or use ipndm")
    if grid.sigmas[1] == 0:
        raise ValueError("S-PNDM's first step looks at its far end, which must be noisy; it needs 2 steps or more, got 1")
    rows = grid.n + 1
    alphas, sigmas = (np.insert(values, 1, values[1]) for values in (grid.alphas, grid.sigmas))  # the first step's far end
    a, b = np.zeros((rows, rows)), np.zeros((rows, rows))
    a[0], b[0] = _transfer(alphas, sigmas, 0, 0, {0: 1.0})
    a[1], b[1] = _transfer(alphas, sigmas, 1, 0, {0: 0.5, 1: 0.5})
    for k in range(2, rows):
        before = k - 1 if k > 2 else 0  # the estimate at the level before
        a[k], b[k] = _transfer(alphas, sigmas, k, k, {k: ADAMS[1][0], before: ADAMS[1][1]})
    weights = guidance.at(grid.levels[:-1])
    return Plan(alphas, sigmas, a, b, np.zeros(rows), np.insert(weights, 1, weights[0]))


def _transfer(alphas: Floats, sigmas: Floats, row: int, start: int, noise: dict[int, float]) -> tuple[Floats, Floats]:
    """A row from state `start`: x' = alpha' X + sigma' e, with e = sum_j noise[j] eps_j and X = (x - sigma e) / alpha."""
    n = sigmas.size - 1
    a, b = np.zeros(n), np.zeros(n)
    alpha, sigma, ratio = alphas[row + 1], sigmas[row + 1], sigmas[row + 1] / sigmas[start]
    a[start], b[start] = ratio, alpha - alphas[start] * ratio  # DDIM; what e has beyond eps_start comes on top
    for j, weight in noise.items():
        if extra := weight - (j == start):
            gain = extra * (sigma - alpha * sigmas[start] / alphas[start]) / sigmas[j]
            a[j] += gain
            b[j] -= gain * alphas[j]
    return a, b


def few_step(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """x' = alpha' D + sigma' fresh noise: how a distilled generator walks its few levels. Zhou et al. 2025, 2505.12674.

    Args:
        grid: in the coordinates of the network.
        guidance: by noise level, taken at the start of each step.

    Returns:
        A plan of grid.n rows, which draws noise in all but one to clean data.
    """
    return Plan(
        alphas=grid.alphas,
        sigmas=grid.sigmas,
        a=np.zeros((grid.n, grid.n)),
        b=np.diag(grid.alphas[1:]),
        c=grid.sigmas[1:],
        guidance=guidance.at(grid.levels[:-1]),
    )


def moved(plan: Plan, parametrisation: Parametrisation) -> Plan:
    """The same sampler in the coordinates of another parametrisation: every state times the ratio of both at its level.

    Timesteps of its own are those of the network that it was for, and go.

    Args:
        plan: in the coordinates of any parametrisation.
        parametrisation: of the network that is to walk it.

    Raises:
        ValueError: where a level is pure noise, which the other coordinates may not have.
    """
    if (plan.alphas == 0).any():
        raise ValueError("this sampler has a level that is pure noise (alpha = 0); take one whose levels are below")
    levels = [float(level) for level in plan.sigmas / plan.alphas]
    alphas, sigmas = np.array([parametrisation.at(level) if level else (1.0, 0.0) for level in levels]).T
    ratio = alphas / plan.alphas
    after = ratio[1:, None]
    return replace(
        plan,
        alphas=alphas,
        sigmas=sigmas,
        a=plan.a * after / ratio[:-1],
        b=plan.b * after,
        c=plan.c * ratio[1:],
        start=None if plan.start is None else plan.start * float(ratio[0]),
        timesteps=None,
        clip=None if plan.clip is None else plan.clip * after,
    )


def scaled(plan: Plan, factors: Floats) -> Plan:
    """The plan whose noise estimate in row k, eps_k = (x_k - alpha_k D_k) / sigma_k, counts factors[k] times, (n,).

    Epsilon scaling, Ning et al. 2023 (arXiv 2308.15321): no network changes, for D becomes f D + (1 - f) x / alpha.

    Args:
        plan: without clip, from a level below pure noise.
        factors: (n,), one for each row; 1 changes nothing.

    Raises:
        ValueError: for a plan that has a row where alpha is 0, where a state says nothing of the image, or one that clips
            estimates.
    """
    alphas = plan.alphas[:-1]
    if plan.clip is not None:
        raise ValueError("noise estimates cannot be scaled in a plan that clips its estimates; take one without clip")
    if not alphas.all():
        raise ValueError("noise estimates are scaled where alpha is above 0; take a grid that starts below pure noise")
    return replace(plan, a=plan.a + plan.b * ((1 - factors) / alphas), b=plan.b * factors)

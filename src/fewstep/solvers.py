"""Solvers write Plans. Each takes a grid in the model's own coordinates and a guidance; none of them sees a network."""

from __future__ import annotations

import numpy as np

from fewstep.guidance import Guidance
from fewstep.plan import Floats, Plan
from fewstep.schedule import Grid

__all__ = ["ddim", "dpmpp_2m", "few_step", "heun"]

PLAIN = Guidance()


def ddim(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """x' = alpha' D + sigma' eps; Euler in EDM and flow coordinates. Song et al. 2021, eq. 12 with eta = 0. Order 1."""
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    return Plan(
        alphas=grid.alphas,
        sigmas=grid.sigmas,
        a=np.diag(ratio),
        b=np.diag(grid.alphas[1:] - grid.alphas[:-1] * ratio),
        c=np.zeros(grid.n),
        weights=guidance.at(grid.levels[:-1]),
    )


def heun(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """Euler to the next level, then the mean of both slopes; the step to sigma = 0 stays Euler. 2 n - 1 rows, order 2.

    The slope is D dalpha + eps dsigma with eps = (x - alpha D) / sigma, which is Karras et al. 2022, algorithm 1, in EDM
    coordinates and Heun in t for flows. The correction shares the guidance of the step it belongs to (its start).
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


def few_step(grid: Grid, guidance: Guidance = PLAIN) -> Plan:
    """x' = alpha' D + sigma' fresh noise: how a distilled generator walks its few levels. Zhou et al. 2025, 2505.12674."""
    return Plan(
        alphas=grid.alphas,
        sigmas=grid.sigmas,
        a=np.zeros((grid.n, grid.n)),
        b=np.diag(grid.alphas[1:]),
        c=grid.sigmas[1:],
        weights=guidance.at(grid.levels[:-1]),
    )

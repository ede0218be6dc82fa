"""IIA: improved integration approximation. Zhang et al. 2024, arXiv 2304.11328.

The solver keeps its steps and gains a few scalars per step, fitted by least squares so that one coarse step lands where
several fine steps of the same solver from the same state land.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.bundle import Bundle
from fewstep.denoiser import load_network
from fewstep.guidance import guided
from fewstep.manifest import PlanEntry
from fewstep.plan import Denoise, Plan, advance, sample
from fewstep.progress import Track, silent
from fewstep.schedule import Grid, to_edm
from fewstep.solvers import ddim

__all__ = ["Fit", "calibrate_ddim", "fit_ddim"]


RANK = 1e-4


@dataclass(frozen=True)
class Fit:
    """A fitted plan and how far each step ended from its fine target, mean square over pixels, before and after, (n,)."""

    plan: Plan
    before: list[float]
    after: list[float]


def fit_ddim(
    denoise: Denoise,
    grid: Grid,
    x: Tensor,
    *,
    fine: int = 10,
    coordinates: Callable[[Grid], Grid] = to_edm,
    track: Track = silent,
) -> Fit:
    """IIA-DDIM: x' = DDIM + p0 (D_k - D_{k-1}) + p1 (eps_k - eps_{k-1}) for k >= 1, p0 and p1 in closed form, eq. 14.

    x: states sigma_0 * noise, (B, C, H, W). The target of a step is `fine` DDIM steps, uniform in sigma, from the same
    state. Each step is fitted on the trajectory that the corrections before it already produce; fitting on the plain one
    diverges. Without guidance only: the paper's guided form is another one. coordinates brings a grid into those of the
    model, where `grid` is already: to_edm, to_vp or to_flow.
    """
    plan = ddim(grid)
    states, estimates = [x], []
    before, after = [], []
    with torch.no_grad():
        for k in track(range(plan.rows), "fit IIA-DDIM"):
            estimates.append(denoise(states[k], float(plan.sigmas[k])))
            target = sample(denoise, states[k], ddim(coordinates(_between(grid, k, fine))))
            missing = (target - advance(plan, k, states, estimates)).double()
            before.append(float(missing.square().mean()))
            if k:
                plan = _corrected(plan, k, *_least_squares(_directions(plan, k, states, estimates), missing))
            states.append(advance(plan, k, states, estimates))
            after.append(float((target - states[-1]).double().square().mean()))
    return Fit(plan, before, after)


def calibrate_ddim(
    bundle: Bundle,
    steps: int,
    *,
    name: str | None = None,
    network: str = "teacher",
    fine: int = 10,
    samples: int = 64,
    seed: int = 0,
    track: Track = silent,
) -> tuple[Bundle, Fit]:
    """Fit IIA-DDIM on the usual grid of a network of the bundle and add the plan `name` (iia4 for 4 steps) to it.

    Needs no data: noise and labels are drawn. Raises ValueError when the bundle has no such network, steps < 2, or images are
    made from embeddings.
    """
    if steps < 2:
        raise ValueError(f"IIA corrects a step by the one before it and needs at least 2 steps, got {steps}")
    name = name or f"iia{steps}"
    condition = bundle.manifest.condition
    if condition.kind == "embeddings":
        raise ValueError("the fit draws its conditions at random, which embeddings do not allow; choose a plan of a solver")
    denoiser = load_network(bundle, network)
    generator = torch.Generator().manual_seed(seed)
    grid = denoiser.parametrisation.grid(steps)
    x = float(grid.sigmas[0]) * torch.randn(samples, *bundle.manifest.state_shape, generator=generator)
    labels = (torch.arange(samples) % condition.classes,) if condition.kind == "labels" else ()
    denoise = guided(denoiser, labels, ())
    fit = fit_ddim(denoise, grid, x, fine=fine, coordinates=denoiser.parametrisation.coordinates, track=track)
    with bundle.edit() as draft:
        draft.manifest.plans[name] = PlanEntry.of(fit.plan, network=network, solver=f"IIA-DDIM, {steps} steps")
        draft.manifest.provenance[name] = {
            "fine": fine,
            "samples": samples,
            "seed": seed,
            "residual_before": fit.before,
            "residual_after": fit.after,
            "consistency": fit.plan.consistency().tolist(),
        }
    return Bundle.load(bundle.root), fit


def _between(grid: Grid, k: int, n: int) -> Grid:
    """n steps from level k to level k + 1 of a grid, uniform in both coordinates."""
    return Grid(*(np.linspace(values[k], values[k + 1], n + 1) for values in (grid.alphas, grid.sigmas)))


def _directions(plan: Plan, k: int, states: list[Tensor], estimates: list[Tensor]) -> list[Tensor]:
    eps = [(states[j] - float(plan.alphas[j]) * estimates[j]) / float(plan.sigmas[j]) for j in (k, k - 1)]
    return [estimates[k] - estimates[k - 1], eps[0] - eps[1]]


def _least_squares(directions: list[Tensor], target: Tensor) -> tuple[float, float]:
    """p with the smallest |target - sum_i p_i directions_i|^2 over pixels and batch, in float64.

    After a plain step the two directions are the same but for their length, eps_k - eps_{k-1} = (D_{k-1} - D_k) / sigma_k.
    Scaled to length 1, what differs by less than about RANK^0.5 is taken for the same and shared by both coefficients; to fit
    it would be to fit rounding, with coefficients in the thousands that fp16 and even fp32 graphs cannot follow.
    """
    q = torch.stack([d.double().flatten() for d in directions])
    length = q.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    unit = q / length[:, None]
    gram, projection = (unit @ unit.T).cpu().numpy(), (unit @ target.flatten()).cpu().numpy()
    solution = np.linalg.lstsq(gram, projection, rcond=RANK)[0] / length.cpu().numpy()
    return float(solution[0]), float(solution[1])


def _corrected(plan: Plan, k: int, p0: float, p1: float) -> Plan:
    """The plan with p0 (D_k - D_{k-1}) + p1 (eps_k - eps_{k-1}) added to row k; eps_j = (x_j - alpha_j D_j) / sigma_j."""
    a, b = plan.a.copy(), plan.b.copy()
    for j, sign in ((k, 1), (k - 1, -1)):
        a[k, j] += sign * p1 / plan.sigmas[j]
        b[k, j] += sign * (p0 - p1 * plan.alphas[j] / plan.sigmas[j])
    return replace(plan, a=a, b=b)

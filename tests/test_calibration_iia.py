"""IIA against exact solutions, and what the paper says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from truth import Gaussian

from fewstep.calibration.iia import Fit, Part, fit
from fewstep.calibration.methods import METHODS, landings
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Eps, Flow
from fewstep.sampling.plan import sample, trajectory
from fewstep.sampling.schedule import Grid, karras, to_flow, to_vp
from fewstep.sampling.solvers import ddim, heun, ipndm, spndm


class Mixture:
    """Two points at -1 and +1 with a spread: a denoiser that bends, exact in float64, in EDM coordinates."""

    def __init__(self, std: float = 0.3) -> None:
        self.std = std

    def denoise(self, x: torch.Tensor, sigma: float, scale: float = 1.0) -> torch.Tensor:
        """Guided, it moves towards +1."""
        variance = self.std**2 + sigma**2
        made = (self.std**2 * x + sigma**2 * torch.tanh(x / variance)) / variance
        return made + (scale - 1) * 0.2 * (1 - made) * sigma**2 / variance


def _noise(seed: int, n: int = 64) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _fit(name: str, grid: Grid, seed: int = 0, **options) -> Fit:
    return fit(METHODS[name], grid, [Part(Mixture().denoise, float(grid.sigmas[0]) * _noise(seed))], **options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [4, 6])
def test_fitted_steps_end_nearer_to_the_true_solution_on_new_noise(name: str, steps: int) -> None:
    grid, denoise = karras(steps, 0.002, 80.0), Mixture().denoise
    plan, x = _fit(name, grid).plan, 80.0 * _noise(1)
    truth = sample(denoise, x, heun(karras(60, 0.002, 80.0)))
    plain, fitted = ((sample(denoise, x, p) - truth).square().mean() for p in (METHODS[name].solver(grid, Guidance()), plan))
    assert fitted < 0.9 * plain


@pytest.mark.parametrize("name", METHODS)
def test_no_fitted_step_is_worse_than_the_solvers(name: str) -> None:
    for step in _fit(name, karras(6, 0.002, 80.0)).steps:
        assert step.after <= step.before * (1 + 1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_zero_coefficients_give_the_solver(name: str) -> None:
    grid = karras(5, 0.002, 80.0)
    known = [step._replace(coefficients=[0.0] * len(step.coefficients)) for step in _fit(name, grid).steps]
    plan, base = _fit(name, grid, known=known).plan, METHODS[name].solver(grid, Guidance())
    np.testing.assert_array_equal(plan.a, base.a)
    np.testing.assert_array_equal(plan.b, base.b)


def test_the_terms_of_ddim_are_the_papers() -> None:
    """Row k of the fitted table, walked by hand as DDIM + p0 (D_k - D_{k-1}) + p1 (eps_k - eps_{k-1})."""
    grid, denoise = karras(4, 0.01, 20.0), Mixture().denoise
    found, plain = _fit("iia-ddim", grid), ddim(grid)
    x = grid.sigmas[0] * _noise(2)
    steps = list(trajectory(denoise, x, found.plan))
    states, d = [x, *(s.x for s in steps)], [s.denoised for s in steps]
    eps = [(states[k] - d[k]) / grid.sigmas[k] for k in range(4)]
    assert [step.row for step in found.steps] == [1, 2, 3]
    for k, (_, (p0, p1), _, _) in enumerate(found.steps, 1):
        expected = plain.a[k, k] * states[k] + plain.b[k, k] * d[k] + p0 * (d[k] - d[k - 1]) + p1 * (eps[k] - eps[k - 1])
        torch.testing.assert_close(states[k + 1], expected, atol=1e-9, rtol=1e-9)


def test_the_terms_of_iia_edm_are_the_papers_and_heun_is_one_of_them() -> None:
    """z+ = z + sum_k bE_k (z_{i-k} - D_{i-k}) + bD_k (D_{i-k} - D~_{i-k+1}); Heun: bE_0 = (t+ - t) / t, bD_0 = half of that."""
    grid = karras(5, 0.1, 10.0)
    plan, steps = heun(grid), landings(heun(grid))
    assert steps == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 8)]
    for i in (1, 2, 3):
        start, row = steps[i]
        t, after = grid.sigmas[i], grid.sigmas[i + 1]
        terms = METHODS["iia-edm"].terms(plan, steps, i)
        assert len(terms) == 4
        z = np.zeros((2, plan.rows))
        z[0, start] = 1
        heun_row = z + (after - t) / t * (terms[0] * t) + (after - t) / (2 * after) * terms[2]
        # The second slope is (z~ - D~) / t+ with z~ = z + (t+ - t)(z - D) / t, which is how the predictor's row reads.
        direct = np.stack([plan.a[row], plan.b[row]])
        direct[:, :] += plan.a[row, row] * np.stack([plan.a[row - 1], plan.b[row - 1]])
        direct[0, row] -= plan.a[row, row]
        np.testing.assert_allclose(direct, heun_row, atol=1e-12)
    assert METHODS["iia-edm"].terms(plan, steps, 0) == METHODS["iia-edm"].terms(plan, steps, 4) == []


@pytest.mark.parametrize("solver", [ddim, ipndm, spndm])
def test_a_steps_image_and_noise_give_its_two_ends(solver) -> None:
    """x = alpha X + sigma e and x' = alpha' X + sigma' e, read off the rows by the terms of the second step."""
    grid = to_vp(karras(5, 0.1, 10.0))
    plan = solver(grid)
    steps = landings(plan)
    for i in range(1, len(steps)):
        image, noise = METHODS["iia-ddim"].terms(plan, steps, i)
        ends = []
        for (start, row), k in ((steps[i], i), (steps[i - 1], i - 1)):
            z = np.zeros((2, plan.rows))
            z[0, start] = 1
            ends.append((z, np.stack([plan.a[row], plan.b[row]]), k))
        # With X and e of both steps unknown, their differences must solve the four equations.
        (x1, y1, k1), (x0, y0, k0) = ends
        for states, (ka, kb) in (((x1, x0), (k1, k0)), ((y1, y0), (k1 + 1, k0 + 1))):
            level = [(grid.alphas[k], grid.sigmas[k]) for k in (ka, kb)]
            e0 = (y0 - grid.alphas[k0 + 1] / grid.alphas[k0] * x0) / (
                grid.sigmas[k0 + 1] - grid.alphas[k0 + 1] / grid.alphas[k0] * grid.sigmas[k0]
            )
            image0 = (x0 - grid.sigmas[k0] * e0) / grid.alphas[k0]
            np.testing.assert_allclose(states[0], level[0][0] * (image0 + image) + level[0][1] * (e0 + noise), atol=1e-9)


@pytest.mark.parametrize(("name", "first"), [("iia-ddim", 1), ("iia-edm", 3), ("biia-edm", 3), ("iia-dpmpp-2m", 1)])
def test_on_gaussian_data_the_scalars_suffice_to_land_exactly(name: str, first: int) -> None:
    """There every term is affine in x with a slope of its own, so the residual of a fitted step is rounding."""
    data, grid = Gaussian(mean=0.0), karras(5, 0.1, 10.0)
    found = fit(METHODS[name], grid, [Part(data.denoise, 10.0 * _noise(0))])
    assert found.steps[0].row == first
    assert max(step.after for step in found.steps) < 1e-12 * max(step.before for step in found.steps)


@pytest.mark.parametrize("parametrisation", [Eps(), Flow()], ids=lambda p: p.kind)
@pytest.mark.parametrize("name", [n for n in METHODS if n != "iia-spndm"])
def test_in_other_coordinates_the_fine_steps_stay_in_them(name: str, parametrisation: Eps | Flow) -> None:
    """The exact denoiser of these coordinates is asked at their levels only, and the fit ends nearer to the exact solution."""
    data, grid = Gaussian(mean=0.1, alpha_of=parametrisation.alpha), parametrisation.coordinates(karras(5, 0.05, 20.0))
    levels = (grid.alphas[0], grid.sigmas[0]), (grid.alphas[-1], grid.sigmas[-1])
    part = Part(data.denoise, grid.sigmas[0] * _noise(0))
    fitted = fit(METHODS[name], grid, [part], coordinates=parametrisation.coordinates, fine=50).plan
    x, plain = grid.sigmas[0] * _noise(1), METHODS[name].solver(grid, Guidance())
    errors = [float((sample(data.denoise, x, p) - data.solve(x, *levels)).abs().max()) for p in (plain, fitted)]
    assert errors[1] < 0.6 * errors[0]


def test_a_flow_that_starts_from_pure_noise_can_be_fitted() -> None:
    data = Gaussian(alpha_of=Flow().alpha)
    grid = Flow().grid(5)
    for name in ("iia-ddim", "iia-ipndm"):
        steps = fit(METHODS[name], grid, [Part(data.denoise, _noise(0))], coordinates=to_flow, fine=5).steps
        assert all(step.after < step.before for step in steps)


def test_guided_rows_are_fitted_to_guided_fine_steps() -> None:
    """Outside the interval the fit sees the plain denoiser, inside it the guided one; the plan keeps the scales."""
    grid, guidance = karras(6, 0.002, 80.0), Guidance(3.0, 0.3, 10.0)
    found = _fit("iia-ddim-guided", grid, guidance=guidance)
    np.testing.assert_array_equal(found.plan.guidance, ddim(grid, guidance).guidance)
    x = 80.0 * _noise(1)
    truth = sample(Mixture().denoise, x, heun(karras(60, 0.002, 80.0), guidance))
    plain, fitted = ((sample(Mixture().denoise, x, p) - truth).square().mean() for p in (ddim(grid, guidance), found.plan))
    assert fitted < plain


def test_parts_and_a_stop_change_nothing() -> None:
    grid, x = karras(5, 0.002, 80.0), 80.0 * _noise(0)
    whole = fit(METHODS["iia-ddim"], grid, [Part(Mixture().denoise, x)], fine=4)
    halves = fit(METHODS["iia-ddim"], grid, [Part(Mixture().denoise, half) for half in x.split(40)], fine=4)
    np.testing.assert_allclose(halves.plan.b, whole.plan.b, rtol=1e-9)
    seen: list = []
    resumed = fit(METHODS["iia-ddim"], grid, [Part(Mixture().denoise, x)], fine=4, known=whole.steps[:2], fitted=seen.append)
    np.testing.assert_array_equal(resumed.plan.b, whole.plan.b)
    assert resumed.calls == whole.calls - 2 * 4  # the fine steps of what was known
    assert len(seen[-1]) == 4


def test_the_calls_of_a_fit_grow_linearly_with_its_steps() -> None:
    calls = [_fit("iia-ddim", karras(n, 0.002, 80.0), fine=3).calls for n in (4, 8, 16)]
    assert calls == [n + 3 * (n - 1) for n in (4, 8, 16)]

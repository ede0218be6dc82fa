"""IIA-DDIM against exact solutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from truth import Gaussian

from fewstep.bundle import Bundle, Draft
from fewstep.calibration.iia import calibrate_ddim, fit_ddim
from fewstep.manifest import Condition, ImageSpec
from fewstep.parametrisation import Eps, Flow
from fewstep.plan import sample, trajectory
from fewstep.schedule import karras, to_vp
from fewstep.solvers import ddim


class Mixture:
    """Two points at -1 and +1 with a spread: a denoiser that bends, exact in float64."""

    def __init__(self, std: float = 0.3) -> None:
        self.std = std

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        variance = self.std**2 + sigma**2
        pull = torch.tanh(x / variance)
        return (self.std**2 * x + sigma**2 * pull) / variance


def _noise(seed: int, n: int = 64) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [4, 6, 10])
def test_fitted_steps_end_nearer_to_the_true_solution_on_new_noise(steps: int) -> None:
    grid, denoise = karras(steps, 0.002, 80.0), Mixture().denoise
    plan = fit_ddim(denoise, grid, 80.0 * _noise(0)).plan
    x = 80.0 * _noise(1)
    truth = sample(denoise, x, ddim(karras(400, 0.002, 80.0)))
    plain, fitted = ((sample(denoise, x, p) - truth).square().mean() for p in (ddim(grid), plan))
    assert fitted < 0.5 * plain
    assert np.abs(plan.consistency()).max() < 1e-9


def test_each_fit_lowers_its_residual_and_the_first_step_stays_plain() -> None:
    grid = karras(5, 0.002, 80.0)
    fit = fit_ddim(Mixture().denoise, grid, 80.0 * _noise(0))
    assert fit.after[0] == fit.before[0]
    assert all(after < before for before, after in zip(fit.before[1:], fit.after[1:], strict=True))
    np.testing.assert_array_equal(fit.plan.a[0], ddim(grid).a[0])


def test_the_correction_is_the_papers_two_terms() -> None:
    """Row k of the fitted table, walked by hand as DDIM + p0 (D_k - D_{k-1}) + p1 (eps_k - eps_{k-1})."""
    grid, denoise = to_vp(karras(4, 0.01, 20.0)), Mixture().denoise
    plan, plain = fit_ddim(denoise, grid, grid.sigmas[0] * _noise(0), coordinates=to_vp).plan, ddim(grid)
    x = grid.sigmas[0] * _noise(2)
    steps = list(trajectory(denoise, x, plan))
    states, d = [x, *(s.x for s in steps)], [s.denoised for s in steps]
    eps = [(states[k] - plan.alphas[k] * d[k]) / plan.sigmas[k] for k in range(4)]
    for k in range(1, 4):
        p1 = -plan.a[k, k - 1] * plan.sigmas[k - 1]
        p0 = -plan.b[k, k - 1] + p1 * plan.alphas[k - 1] / plan.sigmas[k - 1]
        expected = plain.a[k, k] * states[k] + plain.b[k, k] * d[k] + p0 * (d[k] - d[k - 1]) + p1 * (eps[k] - eps[k - 1])
        torch.testing.assert_close(states[k + 1], expected, atol=1e-9, rtol=1e-9)


def test_on_gaussian_data_two_scalars_suffice_to_land_exactly() -> None:
    """There both directions are affine in x with different slopes, so the residual of a fitted step is rounding."""
    data = Gaussian(mean=0.0)
    fit = fit_ddim(data.denoise, karras(5, 0.1, 10.0), 10.0 * _noise(0))
    assert max(fit.after[1:]) < 1e-12 * max(fit.before[1:])


@pytest.mark.parametrize("parametrisation", [Eps(), Flow()], ids=lambda p: p.kind)
def test_in_other_coordinates_the_fine_steps_stay_in_them(parametrisation: Eps | Flow) -> None:
    """The exact denoiser of these coordinates is asked at their levels only, and the fit ends nearer to the exact solution."""
    data, grid = Gaussian(alpha_of=parametrisation.alpha), parametrisation.coordinates(karras(5, 0.05, 20.0))
    levels = (grid.alphas[0], grid.sigmas[0]), (grid.alphas[-1], grid.sigmas[-1])
    fitted = fit_ddim(data.denoise, grid, grid.sigmas[0] * _noise(0), coordinates=parametrisation.coordinates, fine=50).plan
    x = grid.sigmas[0] * _noise(1)
    errors = [float((sample(data.denoise, x, p) - data.solve(x, *levels)).abs().max()) for p in (ddim(grid), fitted)]
    assert errors[1] < 0.3 * errors[0]


def test_embeddings_cannot_be_drawn(tmp_path: Path) -> None:
    image, condition = ImageSpec(channels=4, height=8, width=8), Condition(kind="embeddings", tokens=2, width=3)
    with Draft.create(tmp_path / "text.bundle", image=image, condition=condition):
        pass
    with pytest.raises(ValueError, match="draws its conditions at random, which embeddings do not allow"):
        calibrate_ddim(Bundle.load(tmp_path / "text.bundle"), 3)


def test_a_bundle_gains_the_plan_and_its_residuals(digits: Bundle) -> None:
    bundle, fit = calibrate_ddim(digits, 3, name="fitted", samples=8, fine=2)
    np.testing.assert_array_equal(bundle.plan("fitted").a, fit.plan.a)
    assert bundle.manifest.provenance["fitted"]["residual_after"] == fit.after
    again, _ = calibrate_ddim(bundle, 3, name="again", samples=8, fine=2)
    np.testing.assert_array_equal(again.plan("again").b, fit.plan.b)


def test_one_step_is_refused(digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least 2 steps, got 1"):
        calibrate_ddim(digits, 1)

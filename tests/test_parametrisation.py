"""Parametrisations against their closed forms: exact predictions of the network give the exact denoised estimate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from truth import Gaussian

from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity
from fewstep.sampling.plan import sample
from fewstep.sampling.schedule import Grid, vp_signal
from fewstep.sampling.solvers import ddim

STABLE = Betas(kind="scaled_linear", start=0.00085, end=0.012)
ALL = [Edm(sigma_data=0.5), Eps(), Eps(betas=STABLE), Velocity(betas=STABLE), Flow()]
LEVELS = {"edm": (0.002, 1.0, 80.0), "eps": (0.02, 0.5, 0.999), "v": (0.02, 0.5, 1.0), "flow": (0.001, 0.5, 1.0)}


def _prediction(kind: str, x: np.ndarray, sigma: float, alpha: float, denoised: np.ndarray, sigma_data: float) -> np.ndarray:
    """What a perfect network of this kind returns, from its definition."""
    noise = (x - alpha * denoised) / sigma
    if kind == "edm":  # the training target of Karras et al., eq. 8
        total = sigma**2 + sigma_data**2
        return (denoised - sigma_data**2 / total * x) * total**0.5 / (sigma * sigma_data)
    return {"eps": noise, "v": alpha * noise - sigma * denoised, "flow": noise - denoised}[kind]


@pytest.mark.parametrize("parametrisation", ALL, ids=lambda p: p.kind)
def test_exact_predictions_give_the_exact_estimate(parametrisation: Any) -> None:
    data, x = Gaussian(alpha_of=parametrisation.alpha), np.linspace(-3, 3, 7)
    for sigma in LEVELS[parametrisation.kind]:
        exact, alpha, scales = data.denoise(x, sigma), parametrisation.alpha(sigma), parametrisation.scales(sigma)
        out = _prediction(parametrisation.kind, x, sigma, alpha, exact, 0.5)
        np.testing.assert_allclose(scales.skip * x + scales.out * out, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parametrisation", ALL, ids=lambda p: p.kind)
def test_tensors_give_the_numbers_of_floats(parametrisation: Any) -> None:
    levels = [s for s in LEVELS[parametrisation.kind] if s < 1 or parametrisation.kind != "v"] + [0.3, 0.77]
    tensors = parametrisation.scales(torch.tensor(levels, dtype=torch.float64))
    for i, sigma in enumerate(levels):
        floats = parametrisation.scales(sigma)
        for name in floats._fields:
            value = getattr(tensors, name)
            assert float(value[i] if isinstance(value, torch.Tensor) else value) == pytest.approx(
                getattr(floats, name), rel=1e-9
            )


def test_edm_gives_the_network_unit_variance_in_and_out() -> None:
    for sigma in (0.002, 1.0, 80.0):
        scales = Edm(sigma_data=0.5).scales(sigma)
        assert scales.into**2 * (sigma**2 + 0.25) == pytest.approx(1)  # Karras et al., eq. 7
        assert scales.out**2 == pytest.approx((1 - scales.skip) ** 2 * 0.25 + scales.skip**2 * sigma**2)
        assert scales.timestep / 1000 == pytest.approx(math.log(sigma) / 4)


@pytest.mark.parametrize("betas", [Betas(), STABLE], ids=lambda b: b.kind)
def test_the_levels_of_training_have_whole_timesteps_and_those_between_lie_between(betas: Betas) -> None:
    sigmas = np.sqrt(1 - betas.signal())
    found = [Eps(betas=betas).scales(float(s)).timestep for s in sigmas]
    np.testing.assert_allclose(found, np.arange(1000), atol=1e-6)
    assert 400 < Eps(betas=betas).scales(float(sigmas[400:402].mean())).timestep < 401
    np.testing.assert_allclose(Eps(betas=betas).scales(torch.tensor(sigmas)).timestep, np.arange(1000), atol=1e-6)


def test_levels_beyond_the_table_keep_its_ends() -> None:
    assert Velocity().scales(1.0).timestep == 999
    assert Velocity().scales(torch.tensor([1e-6, 1.0])).timestep.tolist() == [0, 999]
    assert Eps().scales(1e-6).timestep == 0
    assert Flow().scales(0.25).timestep == 250


def test_the_signal_tables_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    for kind, start, end in (("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012)):
        theirs = diffusers.DDIMScheduler(beta_schedule=kind, beta_start=start, beta_end=end).alphas_cumprod.numpy()
        np.testing.assert_allclose(Betas(kind=kind, start=start, end=end).signal(), theirs, rtol=2e-5)
    np.testing.assert_array_equal(Betas().signal(), vp_signal())


@pytest.mark.parametrize("parametrisation", ALL, ids=lambda p: p.kind)
def test_the_grid_is_in_its_own_coordinates_and_leads_to_the_exact_solution(parametrisation: Any) -> None:
    grid = parametrisation.grid(400)
    np.testing.assert_allclose(grid.alphas, [parametrisation.alpha(float(s)) for s in grid.sigmas], atol=1e-9)
    if parametrisation.kind == "flow":
        grid = Grid(grid.alphas[1:], grid.sigmas[1:])  # the exact solution's start needs some signal
    data, noise = Gaussian(alpha_of=parametrisation.alpha), np.linspace(-2, 2, 5)

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        scales = parametrisation.scales(sigma)
        out = _prediction(parametrisation.kind, x, sigma, parametrisation.alpha(sigma), data.denoise(x, sigma), 0.5)
        return scales.skip * x + scales.out * out

    x = grid.sigmas[0] * noise
    exact = data.solve(x, (grid.alphas[0], grid.sigmas[0]), (grid.alphas[-1], grid.sigmas[-1]))
    np.testing.assert_allclose(sample(denoise, x, ddim(grid)), exact, atol=2e-2)


@pytest.mark.parametrize("parametrisation", ALL, ids=lambda p: p.kind)
def test_grids_of_other_coordinates_are_brought_into_these(parametrisation: Any) -> None:
    for other in (Edm(sigma_data=1), Eps(), Flow()):
        grid = other.grid(5)
        grid = parametrisation.coordinates(Grid(grid.alphas[1:], grid.sigmas[1:]))
        np.testing.assert_allclose(grid.alphas, [parametrisation.alpha(float(s)) for s in grid.sigmas], atol=1e-9)


@pytest.mark.parametrize(
    ("parametrisation", "sigma", "message"),
    [
        (Eps(), 1.0, r"pure noise \(alpha = 0, sigma = 1\) tells a network of eps nothing"),
        (Eps(), 80.0, "needs 0 < sigma < 1, got 80"),
        (Velocity(), 1.5, "needs 0 < sigma <= 1, got 1.5"),
        (Flow(), 80.0, "needs 0 < sigma <= 1, got 80"),
        (Edm(sigma_data=0.5), 0.0, "needs 0 < sigma, got 0"),
    ],
)
def test_levels_outside_the_coordinates_are_refused(parametrisation: Any, sigma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parametrisation.scales(sigma)


@pytest.mark.parametrize("bad", [{"sigma_data": 0.0}, {"sigma_data": 0.5, "kind": "eps"}, {"sigma_data": 0.5, "extra": 1}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Edm(**bad)

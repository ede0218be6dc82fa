"""Solvers against truth: orders of convergence on Gaussian data, and the diffusers schedulers on the same grid."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from truth import Gaussian

from fewstep.sampling.plan import sample, trajectory
from fewstep.sampling.schedule import Grid, flow, karras, to_flow, to_vp, vp, vp_signal
from fewstep.sampling.solvers import ddim, dpmpp_2m, heun, ipndm, scaled, spndm

SPACES = {
    "edm": (lambda g: g, lambda _: 1.0),
    "vp": (to_vp, lambda sigma: (1 - sigma**2) ** 0.5),
    "flow": (to_flow, lambda sigma: 1 - sigma),
}
X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _smooth(n: int) -> Grid:
    """Levels from 10 to 0.1 that halve their spacing as n doubles, ending above 0 so that every step has full order."""
    return Grid(np.ones(n + 1), np.geomspace(10.0, 0.1, n + 1))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("solver", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence_on_gaussian_data(solver, order: int, space: str) -> None:
    convert, alpha_of = SPACES[space]
    data = Gaussian(alpha_of=alpha_of)
    steps, errors = [32, 64, 128, 256], []
    for n in steps:
        grid = convert(_smooth(n))
        ends = [(grid.alphas[i], grid.sigmas[i]) for i in (0, -1)]
        x = grid.sigmas[0] * X.numpy()
        errors.append(np.abs(sample(data.denoise, x, solver(grid)) - data.solve(x, *ends)).max())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("space", ["edm", "vp"])
@pytest.mark.parametrize(("solver", "order"), [(spndm, 2), (ipndm, 2.5)])
def test_extrapolated_noise_converges_on_even_levels(solver, order: float, space: str) -> None:
    """The weights are those of even spacing. iPNDM's order is between that of its first steps and 4."""
    convert, alpha_of = SPACES[space]
    data = Gaussian(alpha_of=alpha_of)
    steps, errors = [32, 64, 128, 256], []
    for n in steps:
        grid = convert(Grid(np.ones(n + 1), np.linspace(3.0, 0.3, n + 1)))
        ends = [(grid.alphas[i], grid.sigmas[i]) for i in (0, -1)]
        x = grid.sigmas[0] * X.numpy()
        errors.append(np.abs(sample(data.denoise, x, solver(grid)) - data.solve(x, *ends)).max())
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] > order - 0.15


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("solver", [spndm, ipndm])
def test_rows_of_extrapolated_noise_keep_an_image_that_is_known(solver, space: str) -> None:
    grid = SPACES[space][0](_smooth(6))
    assert np.abs(solver(grid).consistency()).max() < 1e-12


def test_spndm_says_what_it_cannot_start_from() -> None:
    with pytest.raises(ValueError, match="cannot start from pure noise"):
        spndm(flow(4))
    with pytest.raises(ValueError, match="needs 2 steps or more, got 1"):
        spndm(karras(1, 0.002, 80.0))


def _loop(scheduler, x: torch.Tensor, model) -> torch.Tensor:
    """A diffusers sampling loop; model(x, i) returns what the scheduler takes as the network's output."""
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(x, t, i), t, x).prev_sample
    return x


def _agrees(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("n", [1, 2, 5, 18])
def test_ddim_is_diffusers_euler_on_the_karras_grid(n: int) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(n)
    grid = karras(n, 0.002, 80.0)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), grid.sigmas, rtol=2e-5)
    denoise = Gaussian().denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        sigma = scheduler.sigmas[i].double()
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
        scheduler.scale_model_input(x, t)
        return (denoise(x, sigma) - c_skip * x) / c_out

    exact = Grid(np.ones(n + 1), scheduler.sigmas.double().numpy())
    _agrees(sample(denoise, X * exact.sigmas[0], ddim(exact)), _loop(scheduler, X * exact.sigmas[0], model))


@pytest.mark.parametrize("n", [2, 5, 18])
def test_heun_is_diffusers_heun(n: int) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="epsilon", timestep_spacing="linspace")
    scheduler.set_timesteps(n)
    levels = scheduler.sigmas.double()
    grid = Grid(np.ones(n + 1), np.append(levels[0].item(), levels[1::2].numpy()))
    denoise = Gaussian().denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        scheduler.scale_model_input(x, t)
        # The first half of a step is at sigmas[i]; the second half, its correction, at the next level.
        sigma = levels[i] if i % 2 == 0 else levels[i + 1]
        return (x - denoise(x, sigma)) / sigma

    _agrees(sample(denoise, X * grid.sigmas[0], heun(grid)), _loop(scheduler, X * grid.sigmas[0], model))


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_dpmpp_2m_is_diffusers_dpm_solver_on_the_karras_grid(n: int) -> None:
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=80.0, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(n)
    grid = Grid(np.ones(n + 1), scheduler.sigmas.double().numpy())
    denoise = Gaussian().denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        sigma = scheduler.sigmas[i].double()
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
        return (denoise(x, sigma) - c_skip * x) / c_out

    _agrees(sample(denoise, X * grid.sigmas[0], dpmpp_2m(grid)), _loop(scheduler, X * grid.sigmas[0], model))


@pytest.mark.parametrize("n", [5, 20])
def test_vp_ddim_is_diffusers_ddim(n: int) -> None:
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(n)
    grid = vp(n)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), vp_signal(), rtol=1e-5)
    denoise = Gaussian(alpha_of=lambda sigma: (1 - sigma**2) ** 0.5).denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        return (x - grid.alphas[i] * denoise(x, grid.sigmas[i])) / grid.sigmas[i]

    ours, theirs = sample(denoise, X, ddim(grid)), _loop(scheduler, X, model)
    assert float((ours - theirs).abs().max()) < 1e-4  # diffusers keeps abar in float32: 2e-5 at t = 999


@pytest.mark.parametrize("n", [1, 4, 28])
def test_flow_ddim_is_diffusers_flow_matching_euler(n: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    grid = flow(n, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, n + 1)[:-1].tolist())
    np.testing.assert_allclose(scheduler.sigmas.numpy(), grid.sigmas, rtol=1e-5, atol=1e-7)
    denoise = Gaussian(alpha_of=lambda sigma: 1 - sigma).denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        return (x - denoise(x, grid.sigmas[i])) / grid.sigmas[i]

    _agrees(sample(denoise, X, ddim(grid)), _loop(scheduler, X, model))


@pytest.mark.parametrize("n", [1, 2, 6, 20])
def test_ipndm_is_diffusers_ipndm(n: int) -> None:
    grid = vp(n)
    scheduler = diffusers.IPNDMScheduler(trained_betas=grid.sigmas.tolist())  # what it calls betas is sigma
    scheduler.set_timesteps(n)
    denoise = Gaussian(alpha_of=SPACES["vp"][1]).denoise

    def model(x: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        alpha, sigma = scheduler.alphas[i].double(), scheduler.betas[i].double()
        eps = (x - grid.alphas[i] * denoise(x, grid.sigmas[i])) / grid.sigmas[i]
        return (eps - sigma * x) / alpha  # it makes eps of this: sigma x + alpha v

    ours, theirs = sample(denoise, X, ipndm(grid)), _loop(scheduler, X, model)
    assert float((ours - theirs).abs().max()) < 2e-3  # diffusers keeps sigma in float32, and alpha = 6e-3 is made of it


@pytest.mark.parametrize("n", [4, 8])
def test_spndm_begins_as_diffusers_pndm(n: int) -> None:
    """PNDM's first step and its first extrapolation are the same; later it takes more estimates."""
    scheduler = diffusers.PNDMScheduler(
        beta_schedule="linear", skip_prk_steps=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(n)
    denoise = Gaussian(alpha_of=SPACES["vp"][1]).denoise
    ours, x = trajectory(denoise, X, spndm(vp(n))), X
    for t in scheduler.timesteps[:3]:
        alpha, sigma = (float(value) ** 0.5 for value in (scheduler.alphas_cumprod[t], 1 - scheduler.alphas_cumprod[t]))
        x = scheduler.step((x - alpha * denoise(x, sigma)) / sigma, t, x).prev_sample
        _agrees(next(ours).x, x)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("solver", [ddim, heun, dpmpp_2m])
def test_scaled_noise_is_in_the_table_alone(solver, space: str) -> None:
    """The plan with the network as it is makes what the plain plan makes with a network that scales its noise itself."""
    convert, alpha_of = SPACES[space]
    data, plan = Gaussian(alpha_of=alpha_of), solver(convert(_smooth(6)))
    factors = np.linspace(0.9, 1.0, plan.rows)
    of_level = {float(sigma): (f, alpha) for sigma, alpha, f in zip(plan.sigmas, plan.alphas, factors, strict=False)}
    if solver is heun:  # two rows at each level but the ends: give them one factor
        factors = np.array([of_level[float(sigma)][0] for sigma in plan.sigmas[:-1]])

    def scaling(x: np.ndarray, sigma: float) -> np.ndarray:
        factor, alpha = of_level[sigma]
        eps = (x - alpha * data.denoise(x, sigma)) / sigma
        return (x - sigma * factor * eps) / alpha

    x = plan.sigmas[0] * X.numpy()
    np.testing.assert_allclose(sample(data.denoise, x, scaled(plan, factors)), sample(scaling, x, plan), rtol=1e-10, atol=1e-12)


def test_noise_is_not_scaled_where_there_is_nothing_but_noise() -> None:
    with pytest.raises(ValueError, match="alpha is above 0"):
        scaled(ddim(flow(4)), np.ones(4))

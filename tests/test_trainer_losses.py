"""The training objectives against the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.schedule import karras, vp_signal
from fewstep.trainer.losses import edm_loss, lskip_loss, lskip_scale, sid_loss

GENERATOR = torch.Generator().manual_seed(0)


class Linear(nn.Module):
    """A denoiser with one weight: D = x - theta sigma x, so that eps = theta x."""

    def __init__(self, theta: float = 0.3) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x - self.theta * sigma.reshape(-1, 1, 1, 1) * x


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_edm_loss_is_the_weighted_error_of_the_estimate() -> None:
    x0, noise, sigma = _draw(4, 1, 6, 6), _draw(4, 1, 6, 6), torch.tensor([0.01, 0.5, 3.0, 60.0], dtype=torch.float64)
    model = Linear()
    x = x0 + sigma.reshape(-1, 1, 1, 1) * noise
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight * (model(x, sigma) - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(edm_loss(model, x0, sigma, noise, (), sigma_data=0.5), expected)


def test_lskip_with_tau_one_is_the_plain_loss() -> None:
    x0, noise, sigma = _draw(3, 1, 6, 6), _draw(3, 1, 6, 6), torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    args = (Linear(), x0, sigma, noise)
    torch.testing.assert_close(
        lskip_loss(*args, _draw(3, 1, 6, 6), (), sigma_data=0.5, tau=1.0), edm_loss(*args, (), sigma_data=0.5)
    )


def test_the_scale_is_the_discrete_formula_of_vp_models() -> None:
    levels = karras(1000, 0.002, 80.0).sigmas[:-1]  # from noisy to clean
    abar = 1 / (1 + levels**2)
    for skip in (1, 9, 49):
        a = abar[:-skip] / abar[skip:]  # abar_t / abar_s, s = skip levels cleaner
        expected = np.sqrt((1 - a) / a)
        scale = lskip_scale(torch.tensor(levels), skip).numpy()
        np.testing.assert_allclose(scale[:-skip], expected, rtol=1e-6, atol=1e-9)
        assert (scale[-skip + 1 :] == 0).all() if skip > 1 else True


def test_the_scale_matches_the_authors_discretisation_to_first_order() -> None:
    """On the VP table itself, c^2 = (sigma_t^2 - sigma_s^2) / (1 + sigma_s^2) is (1 - a) / a."""
    abar = vp_signal()
    sigma = np.sqrt((1 - abar) / abar)
    a = abar[9:] / abar[:-9]
    np.testing.assert_allclose((sigma[9:] ** 2 - sigma[:-9] ** 2) / (1 + sigma[:-9] ** 2), (1 - a) / a, rtol=1e-9)


def test_lskip_in_expectation_is_a_ridge_on_the_output() -> None:
    """E over the fresh noise of Lskip = 1 + c^2 mean(eps^2)."""
    model, sigma = Linear(), torch.full((20000,), 10.0, dtype=torch.float64)
    x0, noise = _draw(1, 1, 4, 4).expand(20000, -1, -1, -1), _draw(1, 1, 4, 4).expand(20000, -1, -1, -1)
    weight = (10.0**2 + 0.25) / 0.25
    value = lskip_loss(model, x0, sigma, noise, _draw(20000, 1, 4, 4), (), sigma_data=0.5, skip=49, tau=0.0).mean() / weight
    eps = model.theta * (x0[0] + 10.0 * noise[0])
    expected = 1 + lskip_scale(sigma[:1], 49) ** 2 * eps.square().mean()
    assert float(value) == pytest.approx(float(expected), rel=0.01)


def test_the_optimum_under_lskip_is_the_papers_shrunk_one() -> None:
    """Least squares over theta: theta_Lskip / theta_L0 = tau / (tau + (1 - tau) c^2)."""
    tau, sigma = 0.9, torch.full((4000,), 20.0, dtype=torch.float64)
    x0, noise, other = (_draw(4000, 1, 4, 4) for _ in range(3))
    best = []
    for weight in (1.0, tau):
        model = Linear(0.0)
        loss = lambda m=model, w=weight: lskip_loss(m, x0, sigma, noise, other, (), sigma_data=0.5, skip=49, tau=w).mean()  # noqa: E731
        slope = torch.autograd.grad(loss(), model.theta, create_graph=True)[0]
        model.theta.data += 1.0
        curvature = torch.autograd.grad(loss(), model.theta)[0] - slope.detach()
        best.append(float(-slope / curvature))
    c2 = float(lskip_scale(sigma[:1], 49)) ** 2
    assert best[1] / best[0] == pytest.approx(tau / (tau + (1 - tau) * c2), rel=0.05)


def test_sid_loss_is_the_formula_and_its_gradient_reaches_everything_but_the_weight() -> None:
    x, a, b = (_draw(2, 1, 4, 4).requires_grad_() for _ in range(3))
    loss = sid_loss(x, a, b, alpha=1.2)
    scale = (x - a).abs().mean((1, 2, 3)).detach()
    expected = ((a - b) * ((a - x) - 1.2 * (a - b))).sum((1, 2, 3)) / scale
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss.sum(), (x, a, b))
    w = scale.reshape(-1, 1, 1, 1)
    for grad, formula in zip(grads, (-(a - b), 2 * a - b - x - 2.4 * (a - b), -(a - x) + 2.4 * (a - b)), strict=True):
        torch.testing.assert_close(grad, formula / w)


def test_sid_loss_vanishes_where_fake_and_teacher_agree_and_survives_equality() -> None:
    x, a = _draw(2, 1, 4, 4), _draw(2, 1, 4, 4)
    assert sid_loss(x, a, a, alpha=1.0).abs().max() == 0
    assert torch.isfinite(sid_loss(x, x, a, alpha=1.0)).all()

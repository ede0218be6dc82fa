"""The training objectives against the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity
from fewstep.sampling.schedule import karras, vp_signal
from fewstep.trainer.configs import plain_share
from fewstep.trainer.levels import Levels, space_of
from fewstep.trainer.losses import denoising_loss, lskip_loss, sid_loss

GENERATOR = torch.Generator().manual_seed(0)
SPACE = space_of(Edm(sigma_data=0.5), mean=-0.6, std=1.3)


class Linear(nn.Module):
    """A denoiser with one weight: D = x - theta sigma x, so that eps = theta x."""

    def __init__(self, theta: float = 0.3) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x - self.theta * sigma.reshape(-1, 1, 1, 1) * x


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def _position(sigma: Tensor) -> Tensor:
    """Where levels lie on the axis of EDM."""
    bottom, top = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (sigma ** (1 / 7) - bottom) / (top - bottom)


def test_the_weighted_error_of_the_estimate_is_the_error_of_what_the_network_estimates() -> None:
    x0, noise = _draw(4, 1, 6, 6), _draw(4, 1, 6, 6)
    for parametrisation, target in (
        (Edm(sigma_data=0.5), None),
        (Eps(), lambda alpha, sigma: noise),
        (Velocity(), lambda alpha, sigma: alpha * noise - sigma * x0),
        (Flow(), lambda alpha, sigma: noise - x0),
    ):
        space = space_of(parametrisation, mean=-1.0, std=1.0)
        levels = space.at(torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64))
        guess = _draw(4, 1, 6, 6)  # what a network makes of it
        skip, out = (torch.as_tensor(s).reshape(-1, 1, 1, 1) for s in parametrisation.scales(levels.sigma)[:2])
        found = denoising_loss(lambda x, s: skip * x + out * guess, x0, levels, noise, (), space.weight(levels))  # noqa: B023
        if target is None:  # EDM's network estimates (x0 - skip x) / out
            wanted = (x0 - skip * levels.noised(x0, noise)) / out
        else:
            wanted = target(*(t.reshape(-1, 1, 1, 1) for t in levels))
        torch.testing.assert_close(found, (guess - wanted).square().mean((1, 2, 3)), rtol=1e-6, atol=1e-9)


def test_lskip_with_tau_one_is_the_plain_loss() -> None:
    x0, noise, sigma = _draw(3, 1, 6, 6), _draw(3, 1, 6, 6), torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    levels = Levels(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(
        lskip_loss(Linear(), x0, _position(sigma), noise, _draw(3, 1, 6, 6), (), SPACE, tau=1.0),
        denoising_loss(Linear(), x0, levels, noise, (), SPACE.weight(levels)),
    )


def test_lskip_of_an_eps_network_is_the_authors_code() -> None:
    """Discrete times, c_t = sqrt((1 - a) / a), a = abar_t / abar_s; the first `skip` times use the plain loss."""
    x0, noise, other, guess = (_draw(5, 1, 6, 6) for _ in range(4))
    times, tau, skip = torch.tensor([3, 8, 9, 500, 999]), 0.9, 9
    abar = torch.tensor(vp_signal())
    alpha, sigma = abar[times].sqrt().reshape(-1, 1, 1, 1), (1 - abar[times]).sqrt().reshape(-1, 1, 1, 1)

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        torch.testing.assert_close(level, sigma.reshape(-1))
        return (x - sigma * guess) / alpha

    space = space_of(Eps(), mean=0, std=1)
    found = lskip_loss(denoise, x0, times.double() / 999, noise, other, (), space, skip=skip, tau=tau)
    a = abar[times] / abar[(times - skip).clamp(min=0)]
    c = ((1 - a) / a).sqrt().reshape(-1, 1, 1, 1)
    plain, skipped = (noise - guess).square().mean((1, 2, 3)), (other - c * guess).square().mean((1, 2, 3))
    expected = torch.where(times >= skip, tau * plain + (1 - tau) * skipped, plain)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_scale_is_the_discrete_formula_of_vp_models() -> None:
    levels = karras(1000, 0.002, 80.0).sigmas[:-1]  # from noisy to clean
    abar = 1 / (1 + levels**2)
    for skip in (1, 9, 49):
        a = abar[:-skip] / abar[skip:]  # abar_t / abar_s, s = skip levels cleaner
        expected = np.sqrt((1 - a) / a)
        scale = SPACE.lskip_scale(torch.linspace(1, 0, 1000, dtype=torch.float64), skip).numpy()
        np.testing.assert_allclose(scale[:-skip], expected, rtol=1e-6, atol=1e-9)
        assert (scale[-skip + 1 :] == 0).all() if skip > 1 else True


def test_lskip_in_expectation_is_a_ridge_on_the_output() -> None:
    """E over the fresh noise of Lskip = 1 + c^2 mean(eps^2)."""
    model, sigma = Linear(), torch.full((20000,), 10.0, dtype=torch.float64)
    x0, noise = _draw(1, 1, 4, 4).expand(20000, -1, -1, -1), _draw(1, 1, 4, 4).expand(20000, -1, -1, -1)
    weight = (10.0**2 + 0.25) / 0.25
    other = _draw(20000, 1, 4, 4)
    value = lskip_loss(model, x0, _position(sigma), noise, other, (), SPACE, skip=49, tau=0.0).mean() / weight
    eps = model.theta * (x0[0] + 10.0 * noise[0])
    expected = 1 + SPACE.lskip_scale(_position(sigma[:1]), 49) ** 2 * eps.square().mean()
    assert float(value) == pytest.approx(float(expected), rel=0.01)


def test_the_optimum_under_lskip_is_the_papers_shrunk_one() -> None:
    """Least squares over theta: theta_Lskip / theta_L0 = tau / (tau + (1 - tau) c^2)."""
    tau, position = 0.9, _position(torch.full((4000,), 20.0, dtype=torch.float64))
    x0, noise, other = (_draw(4000, 1, 4, 4) for _ in range(3))
    best = []
    for weight in (1.0, tau):
        model = Linear(0.0)
        loss = lambda m=model, w=weight: lskip_loss(m, x0, position, noise, other, (), SPACE, skip=49, tau=w).mean()  # noqa: E731
        slope = torch.autograd.grad(loss(), model.theta, create_graph=True)[0]
        model.theta.data += 1.0
        curvature = torch.autograd.grad(loss(), model.theta)[0] - slope.detach()
        best.append(float(-slope / curvature))
    c2 = float(SPACE.lskip_scale(position[:1], 49)) ** 2
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


def test_lskip_is_refused_where_it_is_infinite() -> None:
    """At zero SNR the first level has no signal, and c^2 no bound."""
    endless = Velocity(betas=Betas(zero_snr=True))
    assert plain_share(None, endless) == plain_share(1.0, endless) == 1
    with pytest.raises(ValueError, match="infinite where the first level is noise alone"):
        plain_share(0.99, endless)

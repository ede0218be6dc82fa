"""Which levels training visits, and its rates: the papers' formulas, and nothing that resuming could lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fewstep.sampling.parametrisation import Edm, Eps, Flow, Velocity
from fewstep.trainer.draws import Draws
from fewstep.trainer.levels import Curriculum, space_of
from fewstep.trainer.rates import rates

COUNT = 20_000
SPACES = {p.kind: space_of(p, mean=-0.6, std=1.3) for p in (Edm(sigma_data=0.5), Eps(), Velocity(), Flow())}


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_noise_levels_of_the_base_are_lognormal(kind: str) -> None:
    space = SPACES[kind]
    levels = space.at(space.draw(Draws(0, 0, COUNT), None, 0.5))
    logs = (levels.sigma / levels.alpha).log().numpy()
    assert stats.kstest((logs + 0.6) / 1.3, "norm").pvalue > 0.01


def test_times_of_vp_are_the_tables_whole_numbers_all_alike() -> None:
    space = SPACES["eps"]
    position = space.draw(Draws(0, 0, COUNT), None, 0.5)
    times = (position * 999).numpy()
    np.testing.assert_allclose(times, times.round(), atol=1e-9)
    assert stats.chisquare(np.bincount(times.round().astype(int) // 100, minlength=10)).pvalue > 0.01
    levels = space.at(position)
    torch.testing.assert_close(levels.alpha**2 + levels.sigma**2, torch.ones(COUNT, dtype=torch.float64))
    found = Eps().betas.timestep(levels.sigma, levels.alpha)  # what the network is told
    torch.testing.assert_close(found, position * 999, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", list(SPACES))
def test_the_curriculum_moves_from_the_base_to_its_normal(kind: str) -> None:
    space, curriculum = SPACES[kind], Curriculum(std=0.2)
    start, end = (space.draw(Draws(0, 0, COUNT), curriculum, progress).double().numpy() for progress in (0.0, 1.0))
    np.testing.assert_array_equal(start, space.draw(Draws(0, 0, COUNT), None, 0.0).double().numpy())
    cut = stats.truncnorm(-0.3 / 0.2, 0.7 / 0.2, loc=0.3, scale=0.2)
    assert stats.kstest(end, cut.cdf).pvalue > 0.01
    half = space.draw(Draws(0, 0, COUNT), curriculum, 0.5).double().numpy()
    assert np.mean(np.isin(half, start)) == pytest.approx(0.5, abs=0.02 if kind in ("edm", "flow") else 0.5)


def test_momentum_decays_and_the_rate_makes_up_for_it() -> None:
    for step in (0, 250, 500, 999):
        p = step / 1000
        found = rates("momentum-decay", step, 1000, 1)
        assert found.beta1 == pytest.approx(0.9 * (1 - p) / (0.1 + 0.9 * (1 - p)))
        assert found.lr == pytest.approx((1 - 0.9) / (1 - found.beta1))
        assert rates("compensation-only", step, 1000, 1) == (found.lr, 0.9)
        assert rates("linear", step, 1000, 1) == (1 - p, 0.9)
        assert rates("constant", step, 1000, 1) == (1.0, 0.9)
    assert rates("constant", 9, 1000, 100).lr == pytest.approx(0.1)
    with pytest.raises(ValueError, match="a schedule is linear, constant"):
        rates("cosine", 0, 10, 1)


@pytest.mark.parametrize("kind", list(SPACES))
def test_a_level_is_found_where_it_lies(kind: str) -> None:
    space = SPACES[kind]
    position = torch.linspace(0, 0.99, 12, dtype=torch.float64)
    levels = space.at(position)
    there = space.at(space.position(levels.sigma / levels.alpha))
    torch.testing.assert_close(there.sigma, levels.sigma, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["edm", "eps"])
def test_the_optimum_of_lskip_is_where_its_loss_is_lowest(kind: str) -> None:
    """The loss by hand, tau (e1 - s e)^2 + (1 - tau) (e2 - c s e)^2 with e the best estimate of e1, over a line of s."""
    space, tau, skip = SPACES[kind], 0.5, 49
    level = torch.tensor([0.3, 3.0], dtype=torch.float64)
    c = space.lskip_scale(space.position(level), skip)
    s = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
    loss = tau * (1 - s) ** 2 + (1 - tau) * c**2 * s**2  # what depends on s
    torch.testing.assert_close(s[loss.argmin(0), 0], space.lskip_optimum(level, skip, tau), atol=1e-4, rtol=0)
    assert float(space.lskip_optimum(level, skip, tau).max()) < 1
    torch.testing.assert_close(space.lskip_optimum(level, skip, 1.0), torch.ones(2, dtype=torch.float64))

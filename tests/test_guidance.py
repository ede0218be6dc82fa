"""Guidance in an interval: the facts of arXiv 2404.07724."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.plan import sample
from fewstep.sampling.schedule import Grid, flow, karras
from fewstep.sampling.solvers import ddim, heun


@pytest.mark.parametrize(
    ("grid", "lo", "hi", "calls"),
    [
        (karras(32, 0.002, 80.0), 0.0, inf, 126),
        (karras(32, 0.002, 80.0), 0.19, 1.61, 75),
        (karras(32, 0.002, 80.0), 0.28, 2.90, 77),
        (karras(32, 0.0292, 14.6146, rho=3.0), 0.28, 5.42, 95),  # SDXL's own range
    ],
)
def test_network_calls_of_32_heun_steps_are_the_published_ones(grid: Grid, lo: float, hi: float, calls: int) -> None:
    assert heun(grid, Guidance(2.0, lo, hi)).nfe == calls


def _run(guidance: Guidance) -> tuple[np.ndarray, list[str]]:
    calls: list[str] = []

    def denoise(x: np.ndarray, sigma: float, condition: str) -> np.ndarray:
        calls.append(condition)
        return (0.9 if condition == "cat" else 0.4) * x / (1 + sigma)

    plan = heun(karras(8, 0.002, 80.0), guidance)
    return sample(guided(denoise, ("cat",), ("none",)), np.full(3, 80.0), plan), calls


def test_the_full_interval_is_plain_guidance_bit_for_bit() -> None:
    full, calls = _run(Guidance(3.0, 0.0, inf))
    plain, _ = _run(Guidance(3.0))
    np.testing.assert_array_equal(full, plain)
    assert calls.count("none") == calls.count("cat") == 15


def test_weight_one_is_the_conditional_model_without_any_unconditional_call() -> None:
    one, calls = _run(Guidance(1.0, 0.1, 10.0))
    assert "none" not in calls
    np.testing.assert_array_equal(one, _run(Guidance())[0])


def test_weight_zero_is_the_unconditional_model() -> None:
    zero, _ = _run(Guidance(0.0))
    plan = heun(karras(8, 0.002, 80.0))
    np.testing.assert_allclose(zero, sample(lambda x, sigma: 0.4 * x / (1 + sigma), np.full(3, 80.0), plan), rtol=1e-12)


def test_the_correction_of_a_step_shares_its_guidance() -> None:
    grid = karras(8, 0.002, 80.0)
    weights = heun(grid, Guidance(2.0, 0.3, 10.0)).guidance
    inside = (grid.levels[:-1] > 0.3) & (grid.levels[:-1] <= 10.0)
    np.testing.assert_array_equal(weights[0::2] == 2.0, inside)
    np.testing.assert_array_equal(weights[1::2] == 2.0, inside[:-1])


def test_bounds_are_open_below_and_closed_above_and_reach_pure_noise() -> None:
    levels = np.array([4.0, 2.0, 1.0])
    np.testing.assert_array_equal(Guidance(3.0, 1.0, 2.0).at(levels), [1.0, 3.0, 1.0])
    assert (ddim(flow(4), Guidance(3.0)).guidance == 3.0).all()


@pytest.mark.parametrize("bad", [{"lo": 2.0, "hi": 1.0}, {"scale": inf}, {"scale": float("nan")}])
def test_bad_guidance_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="guidance needs"):
        Guidance(**{"scale": 2.0, **bad})

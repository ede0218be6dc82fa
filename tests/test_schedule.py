"""Noise grids and the conversions between spaces."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.sampling.schedule import Grid, flow, karras, to_edm, to_flow, to_vp, uniform, vp


def test_karras_levels_follow_the_paper() -> None:
    grid = karras(18, 0.002, 80.0)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid.sigmas, [*expected, 0.0], rtol=1e-12)
    assert grid.sigmas.dtype == np.float64
    assert karras(1, 0.002, 80.0).sigmas.tolist() == [pytest.approx(80.0), 0.0]


@pytest.mark.parametrize("grid", [karras(9, 0.01, 50.0), vp(9), uniform(4, 2.5)], ids=["karras", "vp", "uniform"])
@pytest.mark.parametrize("convert", [to_vp, to_flow, to_edm])
def test_conversions_keep_the_noise_levels_and_return(grid: Grid, convert) -> None:
    there = convert(grid)
    np.testing.assert_allclose(there.levels, grid.levels, rtol=1e-12)
    np.testing.assert_allclose(to_edm(there).sigmas, to_edm(grid).sigmas, rtol=1e-12)


def test_conversions_reach_the_space_they_name() -> None:
    grid = karras(5, 0.002, 80.0)
    np.testing.assert_allclose(to_vp(grid).alphas ** 2 + to_vp(grid).sigmas ** 2, 1.0)
    np.testing.assert_allclose(to_flow(grid).alphas + to_flow(grid).sigmas, 1.0)


def test_flow_starts_at_pure_noise_which_edm_cannot_hold() -> None:
    assert flow(4).levels[0] == np.inf
    with pytest.raises(ValueError, match="no finite EDM level"):
        to_edm(flow(4))


@pytest.mark.parametrize("make", [lambda: karras(0, 0.002, 80.0), lambda: karras(3, 80.0, 0.002), lambda: uniform(0, 2.5)])
def test_bad_grids_are_refused(make) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


def test_levels_that_do_not_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="must fall strictly"):
        Grid(np.ones(3), np.array([1.0, 2.0, 0.0]))

"""Plans: the table's invariants, and one loop for every array type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from truth import Gaussian

from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Plan, sample, trajectory
from fewstep.sampling.schedule import flow, karras, uniform, vp
from fewstep.sampling.solvers import ddim, dpmpp_2m, few_step, heun

GRIDS = {"edm": karras(7, 0.002, 80.0), "vp": vp(7), "flow": flow(7)}
RNG = np.random.default_rng(0)


def plan_with(**changes: object) -> Plan:
    tables = {"alphas": np.ones(3), "sigmas": [2.0, 1.0, 0.0], "a": np.eye(2), "b": np.eye(2), "c": np.zeros(2)}
    return Plan(**({**tables, "guidance": np.ones(2)} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": [[1.0, 0.5], [0.0, 1.0]]}, r"lower-triangular: row 0 .* a\[0,1\] = 0.5"),
        ({"b": [[1.0, -1.0], [0.0, 1.0]]}, r"lower-triangular: row 0 .* b\[0,1\] = -1"),
        ({"a": np.eye(3)}, r"needs a of shape \(2, 2\), got \(3, 3\)"),
        ({"c": np.zeros(0)}, "at least 1"),
        ({"b": [[np.nan, 0.0], [0.0, 1.0]]}, "finite numbers only, b has nan"),
        ({"sigmas": [2.0, 0.0, 0.0]}, "sigmas > 0"),
        ({"a": np.zeros((2, 2)), "b": [[1.0, 0.0], [0.0, 0.0]]}, "at least one nonzero"),
    ],
)
def test_a_wrong_table_is_refused_in_words(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_with(**changes)


def test_a_plan_cannot_change_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="read-only"):
        plan_with().a[0, 0] = 2.0


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("solver", [ddim, heun, dpmpp_2m, few_step])
def test_every_solver_is_exact_on_data_that_is_one_point(solver, grid) -> None:
    plan = solver(grid)
    assert np.abs(plan.consistency()).max() < 1e-12
    x = plan.sigmas[0] * RNG.standard_normal(5)
    noise = [np.zeros(5)] * (plan.draws - 1)
    np.testing.assert_allclose(sample(lambda x, sigma: np.full(5, 0.7), x, plan, noise), 0.7, atol=1e-12)


@pytest.mark.parametrize("solver", [ddim, heun, dpmpp_2m])
def test_deterministic_rows_keep_the_noise_level(solver) -> None:
    for grid in GRIDS.values():
        plan = solver(grid)
        # With D = 0 and x_0 = sigma_0 noise, every state must be sigma_k noise.
        for step in trajectory(lambda x, sigma: 0.0 * x, plan.sigmas[0] * np.ones(1), plan):
            np.testing.assert_allclose(step.x, plan.sigmas[step.row + 1], atol=1e-12)


def test_numpy_and_torch_walk_the_same_path() -> None:
    plan = heun(karras(5, 0.01, 20.0))
    x = RNG.standard_normal((2, 3)) * plan.sigmas[0]
    denoise = Gaussian().denoise
    np.testing.assert_array_equal(sample(denoise, x, plan), sample(denoise, torch.tensor(x), plan).numpy())


def test_few_step_returns_the_last_estimate_and_uses_every_draw() -> None:
    plan = few_step(uniform(3, 2.5))
    assert (plan.nfe, plan.draws) == (3, 3)
    np.testing.assert_allclose(plan.sigmas, [2.5, 2.5 * 2 / 3, 2.5 / 3, 0.0])
    seen: list[np.ndarray] = []

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        seen.append(x)
        return np.full_like(x, len(seen))

    noise = [np.full(2, 10.0), np.full(2, 100.0)]
    result = sample(denoise, np.zeros(2), plan, noise)
    np.testing.assert_allclose(result, 3.0)
    np.testing.assert_allclose(seen[1], 1 + plan.sigmas[1] * 10)
    np.testing.assert_allclose(seen[2], 2 + plan.sigmas[2] * 100)


def test_the_wrong_number_of_noise_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="adds noise on 1 rows, got 0"):
        sample(lambda x, sigma: x, np.zeros(2), few_step(uniform(2, 2.5)))


def test_states_no_later_row_reads_are_let_go() -> None:
    plan = ddim(karras(4, 0.1, 10.0))
    alive: list[int] = []
    import weakref

    class Held(np.ndarray):
        pass

    references: list[weakref.ref] = []

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        alive.append(sum(r() is not None for r in references))
        references.append(weakref.ref(x))
        return 0.5 * x

    sample(denoise, np.ones(3).view(Held), plan)
    assert max(alive) <= 2


def test_nfe_counts_guided_rows_twice() -> None:
    assert ddim(karras(10, 0.002, 80.0), Guidance(2.0)).nfe == 20
    assert heun(karras(18, 0.002, 80.0)).nfe == 35

"""The search for where guidance pays, on a landscape whose best is known; the diagnosis on the shipped teacher."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.interval import Steps, Trial, interval, pareto, search, similarity, sweep
from fewstep.calibration.teacher import Teacher
from fewstep.sampling.schedule import flow, karras
from fewstep.sampling.solvers import ddim

GRID = karras(10, 0.002, 80.0)


def _landscape(steps: Steps) -> Trial:
    """Best when the steps 3 .. 6 are guided by 2; every wrong step costs 1."""
    guidance = interval(GRID, steps)
    scales = guidance.at(GRID.levels[:-1])
    wanted = np.zeros(10, bool)
    wanted[3:7] = True
    wrong = np.count_nonzero((scales != 1) != wanted)
    return Trial(steps, wrong + abs(guidance.scale - 2.0), ddim(GRID, guidance).nfe)


@pytest.mark.parametrize("grid", [GRID, flow(10)])
def test_an_interval_guides_the_steps_it_is_made_for(grid) -> None:
    for first, last in ((0, 9), (0, 0), (1, 1), (3, 3), (2, 7), (9, 9)):
        guided = np.flatnonzero(interval(grid, Steps(first, last, 2.0)).at(grid.levels[:-1]) != 1)
        assert guided.tolist() == list(range(first, last + 1))


def test_the_sweep_finds_the_interval() -> None:
    trials = sweep(GRID, [1.5, 2.0, 3.0], _landscape)
    best = min(trials, key=lambda t: t.value)
    assert best.steps == Steps(3, 6, 2.0)
    assert best.value == 0
    assert len(trials) == 3 * (10 + 6)  # every hi, then every lo below the best of them


def test_the_search_finds_it_with_the_scale() -> None:
    best = min(search(GRID, 4.0, _landscape, trials=150), key=lambda t: t.value)
    assert best.value < 1.5
    again = min(search(GRID, 4.0, _landscape, trials=150), key=lambda t: t.value)
    assert again == best


def test_the_front_has_what_nothing_beats_in_both() -> None:
    given = [
        Trial(Steps(0, 9, 1.0), value, nfe) for value, nfe in ((3.0, 10), (2.0, 12), (2.5, 14), (1.0, 20), (4.0, 10), (1.0, 21))
    ]
    assert [(t.value, t.nfe) for t in pareto(given)] == [(3.0, 10), (2.0, 12), (1.0, 20)]


def test_guidance_does_nothing_where_the_image_is_done(digits: Bundle) -> None:
    teacher = Teacher(digits)
    rows = similarity(teacher, ddim(GRID), teacher.draw(16, seed=0))
    assert len(rows) == 10
    assert rows[-1] > 0.99
    assert min(rows) < 0.97
    assert all(row <= 1 + 1e-5 for row in rows)

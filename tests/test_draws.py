"""Randomness by (seed, step), shared among processes."""

from __future__ import annotations

import torch

from fewstep.trainer.draws import Draws


def test_a_step_draws_the_same_numbers_again_and_others_do_not() -> None:
    first, again, other = (Draws(1, step, 8).normal(2, 3) for step in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, Draws(2, 5, 8).normal(2, 3))


def test_processes_share_the_batch_of_one() -> None:
    whole = Draws(0, 3, 6)
    shares = [Draws(0, 3, 6, rank=rank, processes=2) for rank in range(2)]
    for draw in (lambda d: d.normal(2), lambda d: d.uniform(), lambda d: d.integers(100)):
        together, parts = draw(whole), [draw(s) for s in shares]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), together)
    assert len({d.one(10**9) for d in [whole, *shares]}) == 1

"""Randomness that depends on (seed, step) alone, so that a run resumes exactly and does not change with its processes."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """The random numbers of one step of a run.

    Every process draws for the whole batch and keeps its own share, images rank, rank + processes, ...: the update is
    the same for any number of processes that divides the batch.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        batch: int,
        *,
        retry: int = 0,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        state = int(
            np.random.SeedSequence([seed, step, *([retry] if retry else [])]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        )
        self.generator = torch.Generator().manual_seed(state)
        self.batch, self.rank, self.processes, self.device = batch, rank, processes, device
        torch.manual_seed(state + rank)  # what layers draw by themselves, such as dropout

    @classmethod
    def of(cls, accelerator: Accelerator, seed: int, step: int, batch: int, *, retry: int = 0) -> Draws:
        """This process's share of a step's numbers, on its device. retry: how often the run went back, for other numbers."""
        rank, processes = accelerator.process_index, accelerator.num_processes
        return cls(seed, step, batch, retry=retry, rank=rank, processes=processes, device=accelerator.device)

    def normal(self, *shape: int) -> Tensor:
        """Unit-normal numbers, (share, *shape)."""
        return self._share(torch.randn(self.batch, *shape, generator=self.generator))

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), (share,)."""
        return self._share(torch.rand(self.batch, generator=self.generator))

    def integers(self, high: int) -> Tensor:
        """Whole numbers 0 .. high - 1, (share,)."""
        return self._share(torch.randint(high, (self.batch,), generator=self.generator))

    def one(self, high: int) -> int:
        """A whole number 0 .. high - 1 that all processes share."""
        return int(torch.randint(high, (), generator=self.generator))

    def _share(self, values: Tensor) -> Tensor:
        return values[self.rank :: self.processes].to(self.device)

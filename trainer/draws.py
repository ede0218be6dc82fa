"""Randomness that depends on (seed, step) alone, so that a run resumes exactly and does not change with its processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

__all__ = ["Draws", "accumulated"]


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
        self.seed, self.step = (seed, *([retry] if retry else [])), step
        sequence = np.random.SeedSequence([seed, step, *self.seed[1:]])
        state = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        self.generator = torch.Generator().manual_seed(state)
        self.batch, self.rank, self.processes, self.device = batch, rank, processes, device
        torch.manual_seed(state + rank)  # what layers draw by themselves, such as dropout

    @classmethod
    def parts(
        cls, accelerator: Accelerator, seed: int, step: int, batch: int, *, accumulate: int = 1, retry: int = 0
    ) -> list[Draws]:
        """This process's share of a step's numbers, on its device, in as many parts as gradients are accumulated over.

        A part is what a process of its own would get.

        Args:
            accelerator: that knows the processes and the device.
            seed: of the run.
            step: number of the update, from 0.
            batch: samples over all processes, which divides by processes times parts.
            accumulate: parts.
            retry: how often the run went back, for other numbers.
        """
        first, processes = accelerator.process_index * accumulate, accelerator.num_processes * accumulate
        return [
            cls(seed, step, batch, retry=retry, rank=first + part, processes=processes, device=accelerator.device)
            for part in range(accumulate)
        ]

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


def accumulated(accelerator: Accelerator, model: nn.Module, parts: Sequence[Draws]) -> Iterator[Draws]:
    """The parts of an update; gradients travel between processes with the last one alone.

    Args:
        accelerator: of the run.
        model: whose gradients are accumulated, prepared or in shares.
        parts: of this process.

    Yields:
        Each part, to be gone backward through before the next.
    """
    for part in parts:
        last = part is parts[-1]
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        with nullcontext() if last or isinstance(model, FSDPModule) else accelerator.no_sync(model):
            yield part

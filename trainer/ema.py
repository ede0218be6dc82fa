"""Exponential moving average of weights, with a half-life in images. Karras et al. 2022 (EDM), appendix F.1."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["average_into"]


@torch.no_grad()
def average_into(average: nn.Module, net: nn.Module, *, updates: int, batch: int, halflife_images: float) -> None:
    """Move `average`, a copy of net, towards net after its update number `updates` (from 0) of `batch` images.

    The decay ramps up as (1 + n) / (10 + n) over the first updates n, so that a short run forgets its first weights.

    Args:
        average: it is changed.
        net: as it is after the update.
        updates: number of the update, from 0.
        batch: samples of an update.
        halflife_images: after how many samples half of a weight is forgotten.
    """
    decay = min(0.5 ** (batch / halflife_images), (1 + updates) / (10 + updates))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)

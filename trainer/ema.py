"""Exponential moving average of weights, with a half-life in images. Karras et al. 2024 (EDM2), section 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fewstep.denoiser import Denoiser

__all__ = ["average", "averaged"]


def average(net: Denoiser, *, halflife_images: float, batch: int) -> AveragedModel:
    """An averaged copy of net; call update_parameters(net) after each update of `batch` images.

    The decay ramps up as (1 + n) / (10 + n) over the first updates n, so that a short run forgets its first weights.
    """
    limit = 0.5 ** (batch / halflife_images)

    @torch.no_grad()
    def lerp(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        decay = min(limit, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    multi_avg_fn: Any = lerp
    return AveragedModel(net, multi_avg_fn=multi_avg_fn).requires_grad_(False)


def averaged(ema: AveragedModel) -> Denoiser:
    """The denoiser with the averaged weights."""
    return cast(Denoiser, ema.module)

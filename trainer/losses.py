"""Training losses, each a mean over the numbers of a sample, (B,)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.sampling.plan import Denoise
from fewstep.trainer.levels import Levels, Space, per_sample

__all__ = ["denoising_loss", "lskip_loss", "sid_loss", "sid_scale"]


def denoising_loss(
    denoise: Denoise, x0: Tensor, levels: Levels, noise: Tensor, condition: tuple[Tensor, ...], weight: Tensor
) -> Tensor:
    """weight |D(alpha x0 + sigma noise) - x0|^2, (B,).

    Args:
        denoise: D(x, sigma, *condition).
        x0: samples, (B, C, ...).
        levels: of each sample, (B,).
        noise: unit normal, like x0.
        condition: tensors of the inputs, (B, ...) each.
        weight: (B,).
    """
    return weight * _squared(denoise(levels.noised(x0, noise), levels.sigma, *condition) - x0)


def lskip_loss(
    denoise: Denoise,
    x0: Tensor,
    position: Tensor,
    noise: Tensor,
    other: Tensor,
    condition: tuple[Tensor, ...],
    space: Space,
    *,
    skip: int = 9,
    tau: float = 0.99,
) -> Tensor:
    """tau L0 + (1 - tau) Lskip at positions (B,) of a space. S2-DMs, arXiv 2401.01520, eq. 12.

    L0 = |noise - eps|^2 and Lskip = |other - c eps|^2, eps the network's noise estimate, c = space.lskip_scale(position, skip);
    both weighted as the space weighs an error in eps. Levels less than `skip` above the lowest use L0 alone.

    Args:
        denoise: D(x, sigma, *condition).
        x0: samples, (B, C, ...).
        position: (B,), of noise levels.
        noise: unit normal, like x0.
        other: noise drawn anew (the authors' code); pass `noise` itself for the shared reading.
        condition: tensors of the inputs, (B, ...) each.
        space: of the network's parametrisation.
        skip: levels that it looks ahead.
        tau: what L0 counts; with 1, Lskip is not computed.

    Returns:
        The loss of each sample, (B,).
    """
    levels = space.at(position)
    alpha, sigma = (per_sample(t, x0) for t in levels)
    x = levels.noised(x0, noise)
    denoised = denoise(x, levels.sigma, *condition)
    weight = space.weight(levels)
    plain = weight * _squared(denoised - x0)
    if tau == 1:
        return plain
    scale = space.lskip_scale(position, skip)
    eps = (x - alpha * denoised) / sigma
    skipped = weight * (levels.sigma / levels.alpha) ** 2 * _squared(other - per_sample(scale, eps) * eps)
    return torch.where(scale > 0, tau * plain + (1 - tau) * skipped, plain)


def sid_loss(generated: Tensor, teacher: Tensor, fake: Tensor, *, alpha: float) -> Tensor:
    """(a - b) ((a - x) - alpha (a - b)) summed over a sample, over sid_scale. SiD, arXiv 2404.04057, eq. 23.

    The value oscillates around 0 and does not tell how good samples are.

    Args:
        generated: x, what was generated, (B, C, ...).
        teacher, fake: a and b, both score networks' estimates of x from the same noised x, (B, C, ...).
        alpha: published 0.5 to 1.2.

    Returns:
        The loss of each sample, (B,).
    """
    gap = teacher - fake
    return (gap * ((teacher - generated) - alpha * gap)).flatten(1).sum(1) / sid_scale(generated, teacher)


def sid_scale(generated: Tensor, teacher: Tensor) -> Tensor:
    """stopgrad(mean |x - a|), at least 1e-5, (B,).

    Args:
        generated, teacher: x and a, (B, C, ...).
    """
    return (generated - teacher).abs().flatten(1).mean(1).detach().clamp(min=1e-5)


def _squared(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)

"""Training losses, each mean over pixels per image, (B,)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.plan import Denoise

__all__ = ["edm_loss", "lskip_loss", "lskip_scale", "sid_loss"]

LEVELS, SIGMA_MIN, SIGMA_MAX, RHO = 1000, 0.002, 80.0, 7.0  # the discretisation that "skip" counts in


def edm_loss(
    denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor, condition: tuple[Tensor, ...], *, sigma_data: float
) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D(x0 + sigma noise) - x0|^2. Karras et al. 2022, table 1.

    denoise is D(x, sigma, *condition); x0, noise (B, C, H, W), sigma (B,).
    """
    return _weight(sigma, sigma_data) * _squared(noise - _eps(denoise, x0, sigma, noise, condition))


def lskip_loss(
    denoise: Denoise,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    other: Tensor,
    condition: tuple[Tensor, ...],
    *,
    sigma_data: float,
    skip: int = 9,
    tau: float = 0.99,
) -> Tensor:
    """tau L0 + (1 - tau) |other - c eps|^2, L0 = |noise - eps|^2, weighted as edm_loss. S2-DMs, arXiv 2401.01520, eq. 12.

    eps is the network's noise estimate at sigma and c = lskip_scale(sigma, skip). other (B, C, H, W) is noise drawn anew
    (the authors' code); pass `noise` itself for the shared reading. Levels less than `skip` above the lowest use L0 alone.
    """
    eps = _eps(denoise, x0, sigma, noise, condition)
    scale = lskip_scale(sigma, skip)
    plain = _squared(noise - eps)
    skipped = _squared(other - scale.reshape(-1, 1, 1, 1) * eps)
    return _weight(sigma, sigma_data) * torch.where(scale > 0, tau * plain + (1 - tau) * skipped, plain)


def lskip_scale(sigma: Tensor, skip: int) -> Tensor:
    """c with c^2 = (sigma^2 - s^2) / (1 + s^2), s the level `skip` of 1000 Karras levels below sigma; 0 below the last.

    The continuous form of sqrt((1 - a) / a), a = abar_t / abar_s, with abar = 1 / (1 + sigma^2).
    """
    top, bottom = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    root = sigma ** (1 / RHO) - skip * (top - bottom) / (LEVELS - 1)
    lower = root.clamp(min=0) ** RHO
    square = (sigma**2 - lower**2) / (1 + lower**2)
    return torch.where(root >= bottom, square.clamp(min=0).sqrt(), 0)


def sid_loss(generated: Tensor, teacher: Tensor, fake: Tensor, *, alpha: float) -> Tensor:
    """(a - b) ((a - x) - alpha (a - b)) summed over pixels, over stopgrad(mean |x - a|). SiD, arXiv 2404.04057, eq. 23.

    x generated images, a and b the teacher's and the fake score network's estimates of x from the same noised x, all
    (B, C, H, W). The value oscillates around 0 and does not tell how good the images are.
    """
    scale = (generated - teacher).abs().mean((1, 2, 3)).detach().clamp(min=1e-5)
    gap = teacher - fake
    return (gap * ((teacher - generated) - alpha * gap)).sum((1, 2, 3)) / scale


def _eps(denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    level = sigma.reshape(-1, 1, 1, 1)
    x = x0 + level * noise
    eps: Tensor = (x - denoise(x, sigma, *condition)) / level
    return eps


def _weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's loss weight for an error in eps: its weight for an error in D, times sigma^2."""
    return (sigma**2 + sigma_data**2) / sigma_data**2


def _squared(x: Tensor) -> Tensor:
    return x.square().mean((1, 2, 3))

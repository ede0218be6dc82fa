"""What the pixels of an image add up to: brightness, contrast, both ends of the range, color, fine detail. No network.

Networks of features are blind to much of this, so a fit can buy features with brightness: a sampler that burns out, yet has a
small distance. So these statistics stand in every fit toward real images, and beside every distance.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["DEFINITION", "NAMES", "SIZE", "departures", "statistics"]

NAMES = ("brightness", "contrast", "dark", "bright", "color", "detail")
INSIDE, OUTSIDE = 6.0, 14.0  # levels of 255 from an end of the range: a pixel nearer counts as there, one farther does not
BINS = 16  # of a histogram
BANDS = 6  # of a spectrum
SIZE = len(NAMES) + BINS + BANDS
DEFINITION = (*NAMES, INSIDE, OUTSIDE)  # what was measured by another one does not compare


def statistics(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in 0 .. 255 -> (B, SIZE): those of NAMES, a histogram, a spectrum; all about 0 to 1.

    Gradients pass, also from the shares of pixels.
    """
    x = images.float() / 255
    return torch.cat([_named(x), _histogram(x), _spectrum(x)], 1)


def _named(x: Tensor) -> Tensor:
    """(B, len(NAMES)) of images in 0 .. 1."""
    grey = x.mean(1, keepdim=True)
    contrast = grey.flatten(1).var(1, correction=0)
    color = (x - grey).square().mean((1, 2, 3))
    across = [grey.diff(dim=dim).abs().flatten(1) for dim in (2, 3)]  # from a pixel to the next one
    detail = torch.cat(across, 1).mean(1) if across[0].numel() + across[1].numel() else torch.zeros_like(contrast)
    return torch.stack([grey.mean((1, 2, 3)), _root(contrast), _share(x), _share(1 - x), _root(color), detail], 1)


def _share(away: Tensor) -> Tensor:
    """(B,) the share of pixels that are about 0 away: wholly, in part, or not. Noise that no eye sees must not count."""
    return ((OUTSIDE - away * 255) / (OUTSIDE - INSIDE)).clamp(0, 1).mean((1, 2, 3))


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient is finite also at 0."""
    return (square + 1e-12).sqrt()


def _histogram(x: Tensor) -> Tensor:
    """(B, BINS): roots of the shares of pixels near evenly spaced levels, each pixel between two; Hellinger's."""
    place = x.flatten(1) * (BINS - 1)
    lower = place.detach().long().clamp(0, BINS - 2)
    upper = place - lower  # share of the level above
    counts = x.new_zeros(len(x), BINS).scatter_add(1, lower, 1 - upper).scatter_add(1, lower + 1, upper)
    return (counts / place.shape[1] + 1e-4).sqrt()


def _spectrum(x: Tensor) -> Tensor:
    """(B, BANDS): logarithms of the mean power at rings of frequency, from slow to fine; 60 decibels are 1."""
    height, width = x.shape[-2:]
    power = torch.fft.rfft2(x.mean(1) - x.mean((1, 2, 3))[:, None, None], norm="ortho").abs().square()  # (B, H, W // 2 + 1)
    down, right = torch.fft.fftfreq(height, device=x.device), torch.fft.rfftfreq(width, device=x.device)
    ring = (torch.hypot(down[:, None], right) * 2 * BANDS).long().clamp(max=BANDS - 1).flatten()
    sums = power.new_zeros(len(x), BANDS).index_add(1, ring, power.flatten(1))
    counts = torch.bincount(ring, minlength=BANDS).clamp(min=1)
    levels: Tensor = (sums / counts + 1e-6).log10() / 6
    return levels


def departures(real: Tensor, made: Tensor) -> Mapping[str, float]:
    """How far made images' statistics lie from real ones', by name.

    Wasserstein's distance of a statistic's values over the images, in units of its deviation over the real ones: d where all
    images are d deviations brighter, 0.8 where all are alike.

    Args:
        real, made: what `statistics` gave, (n, SIZE) and (m, SIZE).
    """
    found = {}
    for i, name in enumerate(NAMES):
        one, other = (_quantiles(values[:, i]) for values in (real, made))
        # A statistic that no real image varies in, such as the color of grey ones, counts from a hundredth of the range on.
        unit = max(float(real[:, i].double().std()), 0.01)
        found[name] = float((one - other).abs().mean()) / unit
    return found


def _quantiles(values: Tensor, count: int = 200) -> Tensor:
    """(count,) quantiles in the middle of equal shares, so that sets of unequal sizes compare."""
    return values.double().quantile((torch.arange(count, dtype=torch.float64) + 0.5) / count)

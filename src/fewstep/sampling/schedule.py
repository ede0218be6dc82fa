"""Noise grids: where a sampler evaluates the network, in the model's own coordinates.

A grid is a pair (alpha, sigma) per level, n + 1 of them, as a rule ending in clean data. The noise level sigma / alpha is what
papers call sigma in EDM space; it is what the conversions keep and what guidance intervals are stated in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.sampling.plan import Floats

__all__ = [
    "Grid",
    "cosine_betas",
    "flow",
    "karras",
    "linear_betas",
    "to_edm",
    "to_flow",
    "to_vp",
    "uniform",
    "vp",
    "vp_signal",
    "zero_terminal_snr",
]


MAX_STEPS = 1000  # a plan's tables have n^2 numbers


@dataclass(frozen=True, eq=False)
class Grid:
    """The coordinates of n + 1 levels; the noise level sigma / alpha falls strictly.

    Args:
        alphas, sigmas: (n + 1,), kept in float64; an alpha of 0 is pure noise, a last sigma of 0 is clean data.

    Raises:
        ValueError: for fewer than two levels, or where sigma / alpha does not fall strictly to 0 or more.
    """

    alphas: Floats
    sigmas: Floats

    def __post_init__(self) -> None:
        for name in ("alphas", "sigmas"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.alphas.ndim != 1 or self.alphas.size < 2 or self.alphas.shape != self.sigmas.shape:
            raise ValueError(f"a grid needs two or more levels, got {self.alphas.shape} and {self.sigmas.shape}")
        levels = self.levels
        if not (levels[:-1] > levels[1:]).all() or levels[-1] < 0:
            raise ValueError(f"a grid's noise levels sigma / alpha must fall strictly to 0 or more, got {levels}")

    @property
    def n(self) -> int:
        """Steps between the levels."""
        return self.sigmas.size - 1

    @property
    def levels(self) -> Floats:
        """Noise levels sigma / alpha, (n + 1,); infinite where alpha = 0."""
        with np.errstate(divide="ignore"):
            return self.sigmas / self.alphas


def _count(n: int) -> int:
    if not isinstance(n, int | np.integer):
        raise ValueError(f"a grid has a whole number of steps, got {n!r}")
    if not 1 <= n <= MAX_STEPS:
        raise ValueError(f"a grid needs 1 to {MAX_STEPS} steps, got {n}")
    return n


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Grid:
    """Levels equally spaced in sigma^(1/rho) from sigma_max to sigma_min, then 0. Karras et al. 2022, eq. 5.

    Args:
        n: steps, 1 to MAX_STEPS.
        sigma_min, sigma_max: the last level above 0, and the first.
        rho: above 1, the larger, the closer levels lie near sigma_min; 7 in the paper.

    Returns:
        n + 1 levels in EDM coordinates.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max, or for another n.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"karras needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), _count(n))
    return Grid(np.ones(n + 1), np.append(ramp**rho, 0.0))


def uniform(n: int, sigma_max: float) -> Grid:
    """Levels sigma_max (n - k) / n, EDM coordinates: the grid of K-step SiD generators (sigma_max 2.5).

    Args:
        n: steps, 1 to MAX_STEPS.
        sigma_max: the first level.
    """
    return Grid(np.ones(n + 1), np.linspace(sigma_max, 0.0, _count(n) + 1))


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02, *, scaled: bool = False) -> Floats:
    """The linear beta schedule, (steps,). Ho et al. 2020.

    Args:
        steps: of training.
        start, end: the first and the last beta.
        scaled: linear in sqrt(beta), as Stable Diffusion's.
    """
    power = 2 if scaled else 1
    betas: Floats = np.linspace(start ** (1 / power), end ** (1 / power), steps) ** power
    return betas


def cosine_betas(steps: int = 1000) -> Floats:
    """The cosine schedule, (steps,), at most 0.999. Nichol and Dhariwal 2021, eq. 17."""
    curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Floats = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    return betas


def vp_signal(steps: int = 1000, start: float = 1e-4, end: float = 0.02, *, scaled: bool = False) -> Floats:
    """abar_t of the linear beta schedule, (steps,).

    Args:
        steps, start, end, scaled: as for `linear_betas`.
    """
    return np.cumprod(1 - linear_betas(steps, start, end, scaled=scaled), dtype=np.float64)


def zero_terminal_snr(signal: Floats) -> Floats:
    """abar_t moved and stretched in its root: the first level stays, the last is pure noise. Lin et al. 2023, algorithm 1.

    Args:
        signal: abar_t, (T,), decreasing.
    """
    root = np.sqrt(signal)
    moved: Floats = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return moved**2


def vp(n: int, signal: Floats | None = None) -> Grid:
    """n of the discrete VP levels, evenly spaced and including the noisiest, then clean data.

    Args:
        n: steps, at most as many as signal has levels.
        signal: abar_t, (T,), decreasing; the DDPM table by default.

    Returns:
        n + 1 levels in VP coordinates.

    Raises:
        ValueError: for an n below 1 or beyond the levels there are.
    """
    signal = vp_signal() if signal is None else signal
    index = np.round(signal.size * (1 - np.arange(_count(n)) / n)).astype(int) - 1
    abar = np.append(signal[index], 1.0)
    return Grid(np.sqrt(abar), np.sqrt(1 - abar))


def flow(n: int, shift: float = 1.0) -> Grid:
    """Rectified-flow times t from 1 to 0, moved to shift t / (1 + (shift - 1) t). Esser et al. 2024, eq. 23.

    Args:
        n: steps, 1 to MAX_STEPS.
        shift: above 1 it moves levels towards noise.

    Returns:
        n + 1 levels in flow coordinates, the first pure noise.

    Raises:
        ValueError: for another n.
    """
    t = np.linspace(1.0, 0.0, _count(n) + 1)
    t = shift * t / (1 + (shift - 1) * t)
    return Grid(1 - t, t)


def to_edm(grid: Grid) -> Grid:
    """The same noise levels with alpha = 1. Raises ValueError where alpha = 0: no finite EDM level exists."""
    if (grid.alphas == 0).any():
        raise ValueError("pure noise (alpha = 0, flow's t = 1) has no finite EDM level; start the grid below it")
    return Grid(np.ones_like(grid.alphas), grid.levels)


def to_vp(grid: Grid) -> Grid:
    """The same noise levels with alpha^2 + sigma^2 = 1."""
    norm = np.hypot(grid.alphas, grid.sigmas)
    return Grid(grid.alphas / norm, grid.sigmas / norm)


def to_flow(grid: Grid) -> Grid:
    """The same noise levels with alpha + sigma = 1."""
    total = grid.alphas + grid.sigmas
    return Grid(grid.alphas / total, grid.sigmas / total)

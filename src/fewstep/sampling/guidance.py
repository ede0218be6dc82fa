"""Classifier-free guidance in a limited interval of noise levels. Kynkaanniemi et al. 2024, arXiv 2404.07724."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite

import numpy as np

from fewstep.sampling.plan import Array, Denoise, Floats

__all__ = ["PLAIN", "Guidance", "guided", "mix"]

MAX_SCALE = 1000.0


@dataclass(frozen=True)
class Guidance:
    """Guidance by a scale where lo < sigma / alpha <= hi, and 1 (no unconditional pass at all) elsewhere.

    Args:
        scale: of the conditional pass against the unconditional one, between -MAX_SCALE and MAX_SCALE; 1 is no guidance.
        lo, hi: noise levels sigma / alpha between which it is on; lo excluded, hi included.

    Raises:
        ValueError: for an empty interval or a scale beyond MAX_SCALE.
    """

    scale: float = 1.0
    lo: float = 0.0
    hi: float = inf

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise ValueError(f"guidance needs lo < hi, got lo={self.lo}, hi={self.hi}")
        if not abs(self.scale) <= MAX_SCALE:  # also where it is not a number
            raise ValueError(f"guidance needs a scale of at most {MAX_SCALE:g}, got {self.scale}")

    @classmethod
    def of(cls, settings: Mapping[str, float | None]) -> Guidance:
        """From what `settings` gave."""
        return cls(**{key: inf if value is None else value for key, value in settings.items()})

    def settings(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: None is no upper bound."""
        return {key: value if isfinite(value) else None for key, value in asdict(self).items()}

    @property
    def suffix(self) -> str:
        """What it adds to a plan's name."""
        interval = "" if (self.lo, self.hi) == (0.0, inf) else f"_{self.lo:g}-{self.hi:g}"
        return "" if self.scale == 1 else f"_w{self.scale:g}{interval}"

    def at(self, levels: Floats) -> Floats:
        """The scale of steps that start at these noise levels, same shape."""
        return np.where((levels > self.lo) & (levels <= self.hi), self.scale, 1.0)


PLAIN = Guidance()


def guided(denoise: Denoise, condition: tuple[Array, ...], null: tuple[Array, ...]) -> Denoise:
    """Bind a condition: D(x, sigma, scale) = D_null + scale (D_condition - D_null), one evaluation where scale is 1.

    Args:
        denoise: D(x, sigma, *condition).
        condition: arrays with one row for each sample.
        null: the arrays that mean "none", read only where the scale is not 1.

    Returns:
        D(x, sigma, scale), which passes a timestep on where it is given one.
    """

    def guided_denoise(x: Array, sigma: float, scale: float = 1.0, **told: float) -> Array:
        conditional = denoise(x, sigma, *condition, **told)
        if scale == 1:
            return conditional
        return mix(conditional, denoise(x, sigma, *null, **told), scale)

    return guided_denoise


def mix(conditional: Array, unconditional: Array, scale: Array) -> Array:
    """unconditional + scale (conditional - unconditional). Ho and Salimans 2022, eq. 6 with 1 + w = scale.

    Args:
        conditional, unconditional: estimates of one state, of one shape.
        scale: a number, or an array that broadcasts against them.
    """
    return unconditional + scale * (conditional - unconditional)

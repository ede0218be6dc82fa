"""Noise that belongs to a seed, not to a batch: counter-based, one stream per sample. Salmon et al. 2011 (Philox)."""

from __future__ import annotations

from collections.abc import Sequence
from threading import local

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_SEED", "checked_seeds", "noise", "noise_into"]

MAX_SEED = 2**64 - 1


class _Stream(local):
    """A generator for each thread, set to a seed's stream instead of made anew: right after a run, with none of it in the
    caches, making one takes longer than drawing the noise of a small image."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._start = self._bits.state
        self.normal = np.random.Generator(self._bits).standard_normal

    def begin(self, seed: int) -> None:
        """To the start of what Philox(key=seed) draws."""
        self._start["state"]["key"][0] = seed
        self._bits.state = self._start


_STREAM = _Stream()


def checked_seeds(seeds: Sequence[int]) -> Sequence[int]:
    """Seeds as they are. Raises ValueError for none at all, or one that is not a whole number 0 .. 2**64 - 1."""
    if not isinstance(seeds, (Sequence, np.ndarray)) or isinstance(seeds, str):
        raise ValueError(f"seeds are a list of whole numbers, one per sample, got {type(seeds).__name__}")
    if len(seeds) == 0:
        raise ValueError("a batch needs at least 1 sample, got 0 seeds")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"a seed is a whole number from 0 to 2**64 - 1, got {seed!r}")
    return seeds


def noise_into(out: npt.NDArray[np.float32], seeds: Sequence[int]) -> None:
    """Unit-normal noise into an array; each sample from its own seed alone.

    Args:
        out: (B, ...), contiguous.
        seeds: B of them, checked.
    """
    for sample, seed in zip(out, seeds, strict=True):
        _STREAM.begin(seed)
        _STREAM.normal(dtype=np.float32, out=sample)


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The same as a new array (len(seeds), *shape).

    Args:
        seeds: checked.
        shape: of one sample's noise.
    """
    out = np.empty((len(seeds), *shape), dtype=np.float32)
    noise_into(out, seeds)
    return out

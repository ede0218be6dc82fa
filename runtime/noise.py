"""Noise that belongs to a seed, not to a batch: counter-based, one stream per sample. Salmon et al. 2011 (Philox)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_SEED", "noise"]

MAX_SEED = 2**64 - 1


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Unit-normal noise (len(seeds), *shape), each sample from its own seed alone.

    Raises ValueError for a seed that is not a whole number 0 .. 2**64 - 1.
    """
    out = np.empty((len(seeds), *shape), dtype=np.float32)
    for i, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"a seed is a whole number from 0 to 2**64 - 1, got {seed!r}")
        np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(dtype=np.float32, out=out[i])
    return out

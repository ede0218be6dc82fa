"""Calls timed in turns, on one GPU in one process, from inputs on the host to images on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Run", "in_turns", "psnr_db"]

Run: TypeAlias = Callable[[], npt.NDArray[np.uint8]]
ROUNDS = 4


def in_turns(ways: Mapping[str, Run], *, batch: int, seconds: float, calls: int) -> dict[str, dict[str, Any]]:
    """p50 and p99 in ms and images per second of every way. Images that are on the host have waited for the GPU.

    seconds, calls: that each way is timed for, both at least. The ways take turns: a change of the GPU's clock meets all.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            run()  # the caches are the others'
            end, count = time.perf_counter() + seconds / ROUNDS, 0
            while count < calls / ROUNDS or time.perf_counter() < end:
                begin = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - begin) * 1e3)
                count += 1
    return {name: _row(found, batch) for name, found in times.items()}


def _row(milliseconds: list[float], batch: int) -> dict[str, Any]:
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "images_per_second": batch * 1e3 / mean(milliseconds), "calls": len(milliseconds)}


def psnr_db(images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> float:
    """Of images in 0 .. 255; 100 of equal ones."""
    error = float(((images.astype(np.float64) - others) ** 2).mean())
    return min(100.0, 10 * float(np.log10(255**2 / error))) if error else 100.0

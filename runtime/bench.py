"""Latency and throughput of one Generator, bucket by bucket."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.generator import Generator
from fewstep.system.places import writing
from fewstep.system.progress import Track, silent

__all__ = ["measure", "save_plot"]


def measure(generator: Generator, *, seconds: float, track: Track = silent) -> list[dict[str, Any]]:
    """A row for every bucket: ms of the first call and p50, p90, p99 of the later ones, samples per second, peak memory.

    Every bucket runs for `seconds`, at least 10 times, with the signature's example as its inputs.

    Args:
        generator: it is warmed up first.
        seconds: for each bucket, of its later calls.
        track: shows progress.
    """
    first, rows = generator.warm_up(), []
    for i in track(range(len(generator.buckets)), "bench"):
        batch = generator.buckets[i]
        inputs = generator.example(batch)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 10 or time.perf_counter() < end:
            begin = time.perf_counter()
            generator.make(inputs)
            times.append(time.perf_counter() - begin)
        p50, p90, p99 = np.percentile(np.array(times) * 1e3, [50, 90, 99]).tolist()
        rows.append(
            {
                "batch": batch,
                "calls": len(times),
                "first_ms": first[batch] * 1e3,
                "p50_ms": p50,
                "p90_ms": p90,
                "p99_ms": p99,
                "samples_per_second": batch * len(times) / sum(times),
                "peak_memory_bytes": _peak_bytes(),
            }
        )
    return rows


def _peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def save_plot(path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A picture of latency against batch size: the median as a line, up to p99 as a band. Needs matplotlib.

    Args:
        path: of the picture, a PNG.
        results: rows of `measure`, by the title of their line.

    Raises:
        ValueError: where no file may be, as `writing` says.
        OSError: where it cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for title, rows in results.items():
        batches, p50, p99 = ([row[key] for row in rows] for key in ("batch", "p50_ms", "p99_ms"))
        (line,) = axes.plot(batches, p50, marker="o", label=title)
        axes.fill_between(batches, p50, p99, alpha=0.2, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="samples in a batch", ylabel="ms a call, median to p99")
    sizes = sorted({row["batch"] for rows in results.values() for row in rows})
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with writing(path) as beside:
        figure.savefig(beside, format="png", dpi=150)

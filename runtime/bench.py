"""Latency and throughput of one Generator, bucket by bucket."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.progress import Track, silent
from fewstep.runtime.generator import Generator

COLOURS = ("#3b5bdb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d")

__all__ = ["measure", "save_plot"]


def measure(generator: Generator, *, seconds: float, track: Track = silent) -> list[dict[str, Any]]:
    """A row for every bucket: ms of the first call and p50, p90, p99 of the later ones, images per second, peak memory.

    Every bucket runs for `seconds`, at least 10 times. Embeddings are zeros.
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
                "images_per_second": batch * len(times) / sum(times),
                "peak_memory_bytes": _peak_bytes(),
            }
        )
    return rows


def _peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def save_plot(path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A PNG of latency against batch size: the median as a line, p99 as a thin one above it. Needs Pillow."""
    from PIL import Image, ImageDraw

    from fewstep.picture import refuse_path

    refuse_path(path)
    width, height, left, top = 900, 520, 80, 40
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    points = [row for rows in results.values() for row in rows]
    batches = sorted({row["batch"] for row in points})
    high = max(row["p99_ms"] for row in points) * 1.1

    def at(batch: int, ms: float) -> tuple[float, float]:
        step = (width - left - 40) / max(1, len(batches) - 1)
        return left + batches.index(batch) * step, height - 60 - (height - 60 - top) * ms / high

    for i in range(6):
        ms = high * i / 5
        y = at(batches[0], ms)[1]
        draw.line([(left, y), (width - 30, y)], fill="#e3e0dc")
        draw.text((left - 10, y), f"{ms:.1f}", fill="#6b6661", anchor="rm")
    for batch in batches:
        draw.text((at(batch, 0)[0], height - 45), str(batch), fill="#6b6661", anchor="mm")
    draw.text((width / 2, height - 18), "batch size", fill="#1c1917", anchor="mm")
    draw.text((left, 16), "ms per call: median thick, p99 thin", fill="#1c1917", anchor="lm")
    for i, (title, rows) in enumerate(results.items()):
        colour = COLOURS[i % len(COLOURS)]
        for key, thickness in (("p50_ms", 3), ("p99_ms", 1)):
            line = [at(row["batch"], row[key]) for row in rows]
            draw.line(line, fill=colour, width=thickness)
            for x, y in line:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        draw.text((left + 15, top + 15 + 20 * i), title, fill=colour, anchor="lm")
    temporary = path.with_name(f".{path.name}.new")
    image.save(temporary, format="PNG")
    temporary.replace(path)

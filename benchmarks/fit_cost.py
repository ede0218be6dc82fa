"""What a fit costs: python benchmarks/fit_cost.py digits.bundle

Seconds, and network calls for an image, of IIA-DDIM by steps and by samples, of 20 updates of a table by steps, and of sampling
as many images, in turns over several rounds. Writes benchmarks/results/fit_cost.json with medians, and how much of the variance
a line explains.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import calibrate, calibrate_table
from fewstep.calibration.configs import FitConfig, TableConfig
from fewstep.calibration.teacher import Teacher
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim
from fewstep.system.machine import described

RESULT = Path(__file__).parent / "results" / "fit_cost.json"
STEPS, SAMPLES = (4, 6, 8, 12, 16), (16, 32, 64, 128)
ROUNDS = 3


def line(xs: list[float], ys: list[float]) -> dict[str, float]:
    """Least squares, and the share of the variance it explains."""
    slope, start = np.polyfit(xs, ys, 1)
    left = np.var(np.array(ys) - slope * np.array(xs) - start) / np.var(ys)
    return {"slope": float(slope), "start": float(start), "explained": float(1 - left)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


def main(source: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(source, root := Path(directory, source.name))
        bundle = Bundle.load(root)
        teacher = Teacher(bundle, batch=32)
        cases: dict[str, Callable[[int], tuple[float, int]]] = {}

        def fit(steps: int, samples: int, again: int) -> tuple[float, int]:
            config = FitConfig(steps=steps, samples=samples, batch=32)
            seconds, (_, found) = timed(lambda: calibrate(bundle, config, name="fit", cache=Path(directory, f"cache{again}")))
            return seconds, found.calls

        def table(steps: int, again: int) -> tuple[float, int]:
            config = TableConfig(steps, iterations=20)
            return timed(lambda: calibrate_table(bundle, config, name="fit", cache=Path(directory, f"cache{again}")))[0], 0

        def sample(steps: int, samples: int) -> tuple[float, int]:
            inputs = teacher.draw(samples, seed=0)
            return timed(lambda: teacher.sample(ddim(karras(steps, 0.002, 80.0)), inputs))[0], steps

        for steps in STEPS:
            cases[f"fit, {steps} steps, 64 samples"] = lambda again, s=steps: fit(s, 64, again)  # type: ignore[misc]
            cases[f"sample, {steps} steps, 64 samples"] = lambda _, s=steps: sample(s, 64)  # type: ignore[misc]
        for samples in SAMPLES:
            cases[f"fit, 6 steps, {samples} samples"] = lambda again, n=samples: fit(6, n, again)  # type: ignore[misc]
        for steps in (2, 4, 6):
            cases[f"table, {steps} steps, 20 updates"] = lambda again, s=steps: table(s, again)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        calls: dict[str, int] = {}
        for again in range(ROUNDS):
            for name, work in cases.items():
                took, calls[name] = work(again)
                seconds[name].append(took)
                print(f"{name:32} {took:7.2f} s  {calls[name]} calls", flush=True)
    rows = {
        name: {"seconds": median(found), "least": min(found), "most": max(found), "calls": calls[name] or None}
        for name, found in seconds.items()
    }
    of = {kind: [rows[f"{kind}, {s} steps, 64 samples"]["seconds"] for s in STEPS] for kind in ("fit", "sample")}
    result = {
        "machine": described(),
        "rounds": ROUNDS,
        "rows": rows,
        "by steps": line(list(STEPS), of["fit"]),
        "by samples": line(list(SAMPLES), [rows[f"fit, 6 steps, {n} samples"]["seconds"] for n in SAMPLES]),
        "fit over sampling": {str(s): f / p for s, f, p in zip(STEPS, of["fit"], of["sample"], strict=True)},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

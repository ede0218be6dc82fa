"""SiD generators over training time: python benchmarks/sid.py digits.bundle mnist5k directory

Distils K = 1, 2 and 4 with and without 200 real images, every guidance mode, alphas from 0.5 to 1.2, and begun as fitted
tables, over training seeds, each with the same number of images seen; beside them the tables, the teacher's 35 calls, and
DPM-Solver++(2M) and DDIM at equal calls. Writes benchmarks/results/sid.json, run by run: Frechet distance and class accuracy on
held-out images, at the end and along the way.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs import Runs

from fewstep.bundle import Bundle
from fewstep.calibration.calibrate import TableConfig, calibrate_table
from fewstep.calibration.endtoend import Real
from fewstep.calibration.features import FITTING, feature_network
from fewstep.calibration.metrics import Judge
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.denoiser import Denoiser
from fewstep.plan import Plan
from fewstep.solvers import ddim, dpmpp_2m, heun
from fewstep.trainer.sid import distill
from fewstep.trainer.sid_config import SidConfig

SEEDS, ITERATIONS, EVERY, REAL = (0, 1, 2), 240, 40, 200
BASE = SidConfig(iterations=ITERATIONS, validate_every=EVERY, guidance=1.5)
TABLES = ("pixels", "real")
ALPHAS, MODES = (0.5, 0.8, 1.0, 1.2), ("teacher", "lsg", "zero", "anti")


def arms() -> dict[str, tuple[SidConfig, bool]]:
    """Settings, and whether real images join."""
    found: dict[str, tuple[SidConfig, bool]] = {}
    for steps in (1, 2, 4):
        # What several steps need was found with the demo: half the rate.
        config = BASE if steps == 1 else replace(BASE, steps=steps, lr=BASE.lr / 2)
        for alpha in ALPHAS if steps < 4 else (1.0,):
            found[f"{steps} steps, alpha {alpha:g}"] = replace(config, alpha=alpha), False
        found[f"{steps} steps, alpha 1, {REAL} real images"] = replace(config, alpha=1.0), True
        for mode in MODES[1:] if steps < 4 else ():
            found[f"{steps} steps, alpha 1, {mode}"] = replace(config, alpha=1.0, mode=mode), False  # type: ignore[arg-type]
        if steps < 4:
            found[f"{steps} steps, alpha 1, no guidance"] = replace(config, alpha=1.0, guidance=1.0), False
        for table in TABLES if steps > 1 else ():
            found[f"{steps} steps, alpha 1, from the table to {table}"] = (
                replace(config, alpha=1.0, plan=f"{table}{steps}"),
                False,
            )
    return found


class Look:
    """Judges a generator in training on held-out images; keeps what it saw."""

    def __init__(self, judge: Judge, bundle: Bundle) -> None:
        self.judge, self.maker = judge, Teacher(bundle)
        self.seen: list[dict[str, float]] = []

    def score(self, plan: Plan) -> dict[str, float]:
        inputs = self.maker.draw(self.judge.n, seed=0, draws=plan.draws, labels=self.judge.labels)
        found = self.judge.score(self.maker.images(plan, inputs), self.judge.labels)
        return {"frechet": found.frechet, "accuracy": float(found.accuracy or 0), "recall": found.recall}

    def __call__(self, denoiser: Denoiser, plan: Plan) -> float:
        self.maker.denoiser = denoiser
        self.seen.append(self.score(plan))
        return -float(len(self.seen))  # the last weights are kept, as without a metric


def main(source: Path, data: str, folder: Path) -> None:
    root = folder / "sid.bundle"
    if not root.exists():
        shutil.copytree(source, root)
    images = open_images(data)
    judge = Judge(feature_network("classifier", images), open_images(data, "held-out"))
    real = Real.of(images, feature_network("classifier", images, seed=FITTING))
    for steps in (2, 4):
        for table, toward in zip(TABLES, (None, real), strict=True):
            if f"{table}{steps}" not in Bundle.load(root).manifest.plans:
                calibrate_table(Bundle.load(root), TableConfig(steps), name=f"{table}{steps}", real=toward)
    runs = Runs("sid", data=data, n=judge.n, iterations=ITERATIONS, every=EVERY, batch=BASE.batch)
    look = Look(judge, Bundle.load(root))
    grid = look.maker.denoiser.parametrisation.grid
    plans: dict[str, Plan] = {"teacher, Heun 35 calls": heun(grid(18))}
    plans |= {f"teacher, {name} {n} calls": solver(grid(n)) for n in (2, 4) for name, solver in SOLVERS.items()}
    plans |= {f"teacher, table to {t} of {n} calls": Bundle.load(root).plan(f"{t}{n}") for n in (2, 4) for t in TABLES}
    for name, plan in plans.items():
        if not runs.has(name, 0):
            runs.add(name, 0, look.score(plan))
    for seed in SEEDS:
        for name, (config, with_images) in arms().items():
            if not runs.has(name, seed):
                look.seen.clear()
                some: dict[str, Any] = {"images": images.about(REAL)} if with_images else {}
                distill(Bundle.load(root), "student", replace(config, seed=seed), validate=look, **some)
                runs.add(name, seed, {**look.seen[-1], "curve": list(look.seen)})


SOLVERS = {"DDIM": ddim, "DPM-Solver++(2M)": dpmpp_2m}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

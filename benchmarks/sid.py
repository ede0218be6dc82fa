"""SiD generators over training time: python benchmarks/sid.py digits.bundle mnist5k directory

Distils K = 1, 2 and 4 with and without 200 real images, without guidance, and begun as a fitted table, over training seeds,
each with the same number of images seen; every guidance mode and alphas from 0.5 to 1.2 in shorter runs of one step. Beside
them the teacher's 35 calls with and without guidance, and at equal calls the tables, IIA-DDIM, DPM-Solver++(2M) and DDIM.
Writes benchmarks/results/sid.json, run by run: scores on held-out images along the way, and of the weights that were best by
`distill --validate`, which sees training images alone and another classifier.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs import Runs

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import calibrate, calibrate_table
from fewstep.calibration.configs import FitConfig, TableConfig
from fewstep.calibration.endtoend import Real
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.evaluation.features import FITTING, feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.evaluation.validate import validator
from fewstep.models.denoiser import Denoiser, load_network
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Plan
from fewstep.sampling.solvers import ddim, dpmpp_2m, heun
from fewstep.trainer.checkpoint import checkpoint_path
from fewstep.trainer.configs import SidConfig
from fewstep.trainer.sid import distill

SEEDS, EVERY, SHORT, REAL = (0, 1, 2), 100, 200, 200
TABLES, SOLVERS = ("pixels", "real"), {"DDIM": ddim, "DPM-Solver++(2M)": dpmpp_2m}
ALPHAS, MODES = (0.5, 0.8, 1.0, 1.2), ("lsg", "zero", "anti")

Arm = tuple[SidConfig, bool]


def arms() -> dict[str, Arm]:
    """Settings, and whether real images join."""
    found: dict[str, Arm] = {}
    for steps in (1, 2, 4):
        config = SidConfig(steps=steps, validate_every=EVERY)
        found[f"{steps} steps"] = config, False
        found[f"{steps} steps, {REAL} real images"] = config, True
        if steps == 1:
            found["1 steps, no guidance"] = replace(config, guidance=1.0), False
        if steps == 2:
            found["2 steps, from the table to real"] = replace(config, plan="real2"), False
    short = SidConfig(iterations=SHORT, validate_every=EVERY)
    found |= {f"short, alpha {alpha:g}": (replace(short, alpha=alpha), False) for alpha in ALPHAS}
    found |= {f"short, {mode}": (replace(short, mode=mode), False) for mode in MODES}  # type: ignore[arg-type]
    return found | {"short, no guidance": (replace(short, guidance=1.0), False)}


class Look:
    """Evaluates a generator on held-out images, and keeps what it saw of one in training."""

    def __init__(self, evaluator: ImageEvaluator, bundle: Bundle, validate: Callable[[Denoiser, Plan], float]) -> None:
        self.evaluator, self.maker, self.validate = evaluator, Teacher(bundle), validate
        self.seen: list[dict[str, float]] = []

    def score(self, plan: Plan) -> dict[str, float]:
        inputs = self.maker.draw(self.evaluator.n, seed=0, draws=plan.draws, labels=self.evaluator.labels)
        found = self.evaluator.score(self.maker.outputs(plan, inputs), self.evaluator.labels)
        return {"frechet": found.frechet, "accuracy": float(found.accuracy or 0), "recall": found.recall}

    def __call__(self, denoiser: Denoiser, plan: Plan) -> float:
        self.maker.denoiser = denoiser
        value = self.validate(denoiser, plan)
        self.seen.append({**self.score(plan), "validated": value})
        return value


def baselines(bundle: Bundle, teacher: Teacher) -> dict[str, Plan]:
    """What the teacher makes in 35 calls and in as many as the generators."""
    grid = teacher.denoiser.parametrisation.grid
    found = {"teacher, Heun 35 calls": heun(grid(18))}
    scale = SidConfig().guidance
    found[f"teacher guided by {scale:g}, Heun 70 calls"] = heun(grid(18), Guidance(scale))
    found |= {f"teacher, {name} {n} calls": solver(grid(n)) for n in (2, 4) for name, solver in SOLVERS.items()}
    found |= {f"teacher, IIA-DDIM {n} calls": bundle.plan(f"iia{n}") for n in (2, 4)}
    return found | {f"teacher, table to {t} of {n} calls": bundle.plan(f"{t}{n}") for n in (2, 4) for t in TABLES}


def main(source: Path, data: str, folder: Path) -> None:
    root = folder / "sid.bundle"
    if not root.exists():
        shutil.copytree(source, root)
    images = open_images(data)
    evaluator = ImageEvaluator(feature_network("classifier", images), open_images(data, "held-out"))
    real = Real.of(images, feature_network("classifier", images, seed=FITTING))
    for steps in (2, 4):
        for table, toward in zip(TABLES, (None, real), strict=True):
            if f"{table}{steps}" not in Bundle.load(root).manifest.plans:
                calibrate_table(Bundle.load(root), TableConfig(steps), name=f"{table}{steps}", real=toward)
        if f"iia{steps}" not in Bundle.load(root).manifest.plans:
            calibrate(Bundle.load(root), FitConfig(steps=steps), name=f"iia{steps}")
    bundle = Bundle.load(root)
    runs = Runs("sid", data=data, n=evaluator.n, every=EVERY, batch=SidConfig().batch)
    look = Look(evaluator, bundle, validator(bundle, images))
    for name, plan in baselines(bundle, look.maker).items():
        if not runs.has(name, 0):
            runs.add(name, 0, look.score(plan))
    for seed in SEEDS:
        for name, (config, with_images) in arms().items():
            if not runs.has(name, seed):
                look.seen.clear()
                # A run cut off begins anew: its looks are gone.
                shutil.rmtree(checkpoint_path(root, "student"), ignore_errors=True)
                some: dict[str, Any] = {"samples": images.about(REAL)} if with_images else {}
                made = distill(Bundle.load(root), "student", replace(config, seed=seed), validate=look, **some)
                look.maker.denoiser = load_network(made, "student")
                runs.add(name, seed, {**look.score(made.plan("student")), "curve": list(look.seen)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

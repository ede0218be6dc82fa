"""Curriculum and momentum decay against uniform sampling: python benchmarks/curriculum.py mnist5k directory

Trains teachers of equal compute with the curriculum over noise levels, with the momentum decay, with both and with neither, and
with the momentum decay's learning rate alone, over training seeds. They estimate v over 1,000 levels that are drawn uniformly,
as published; more rows are of EDM, whose levels are log-normal without the curriculum. Every EVERY updates the averaged weights
are evaluated with DPM-Solver++(2M) at 10 steps. Writes benchmarks/results/curriculum.json: distances along the way, and the
updates after which a run first comes to the distance that plain ones of its kind at a constant rate end with (none: never).
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from runs import Runs

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.plan import Plan
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher

SEEDS, UPDATES, EVERY = (0, 1, 2), 1500, 100
Choice = dict[str, Any]
BOTH: dict[str, Choice] = {
    "constant rate": {"schedule": "constant"},
    "rate falls to 0": {"schedule": "linear"},
    "curriculum": {"schedule": "constant", "curriculum": 0.3},
}
ALL: dict[str, Choice] = BOTH | {
    "momentum decay": {"schedule": "momentum-decay"},
    "rate of the momentum decay": {"schedule": "compensation-only"},
    "curriculum and momentum decay": {"schedule": "momentum-decay", "curriculum": 0.3},
}
KINDS = {"v": ALL, "edm": BOTH}
ARMS = {f"{kind}, {name}": {"kind": kind, **choice} for kind, choices in KINDS.items() for name, choice in choices.items()}


class Look:
    """Evaluates weights in training, always from the same noise and labels."""

    def __init__(self, evaluator: ImageEvaluator, bundle: Bundle) -> None:
        self.evaluator, self.teacher = evaluator, Teacher(bundle)
        self.inputs = self.teacher.draw(evaluator.n, seed=0, labels=evaluator.labels)

    def __call__(self, denoiser: Denoiser, _plan: Plan) -> float:
        self.teacher.denoiser = denoiser
        return self.evaluator.distance(self.teacher.outputs(dpmpp_2m(denoiser.parametrisation.grid(10)), self.inputs))


def first(curve: list[float], aim: float) -> int | None:
    """The updates after which a curve first comes to the aim."""
    return next((EVERY * (i + 1) for i, value in enumerate(curve) if value <= aim), None)


def main(data: str, folder: Path) -> None:
    images = open_images(data)
    evaluator = ImageEvaluator(feature_network("classifier", images), open_images(data, "held-out"))
    runs = Runs("curriculum", data=data, n=evaluator.n, updates=UPDATES, every=EVERY)
    blank = folder / "blank.bundle"  # for its shapes
    if not blank.exists():
        train_teacher(blank, images, TeacherConfig(iterations=1))
    look = Look(evaluator, Bundle.load(blank))
    for seed in SEEDS:
        for name, choice in ARMS.items():
            if runs.has(name, seed):
                continue
            path = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.bundle"
            config = TeacherConfig(iterations=UPDATES, tau=1.0, seed=seed, validate_every=EVERY, **choice)
            bundle = Bundle.load(path) if path.exists() else train_teacher(path, images, config, validate=look)
            curve = [look.value for look in bundle.manifest.records.components["teacher"].metrics]  # type: ignore[union-attr]
            runs.add(name, seed, {"frechet": curve[-1], "curve": curve})
        aims = {kind: mean(run["curve"][-1] for run in runs.scores[f"{kind}, constant rate"].values()) for kind in KINDS}
        runs.about["reached"] = {
            name: [first(run["curve"], aims[name.split(",")[0]]) for run in found.values()]
            for name, found in runs.scores.items()
        }
        runs.about["aims"] = aims
        runs.write()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

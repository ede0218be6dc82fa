"""Lskip against the plain loss: python benchmarks/lskip.py mnist5k directory

Trains teachers of equal compute with the plain loss and with Lskip of every skip and tau, over training seeds, into bundles in
`directory`, and evaluates DDIM at 5, 10 and 20 steps and IIA-DDIM at 10. They estimate v over the published 1,000 levels, for
the published eps makes no digits yet in so few updates, as one row shows; Lskip's optimum is the same function of the data. Two
more rows are of EDM, with the plain loss and with the default, and five of EDM and eps trained longer. The control takes the
plain teacher and scales its noise estimate while it samples by what Lskip's optimum is. Writes benchmarks/results/lskip.json,
run by run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from runs import Runs

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import calibrate
from fewstep.calibration.configs import FitConfig
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images, open_images
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.solvers import ddim, scaled
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.levels import space_of
from fewstep.trainer.teacher import train_teacher

SEEDS, STEPS, UPDATES, LONGER = (0, 1, 2), (5, 10, 20), 1000, 5000
SKIPS, TAUS = (1, 9, 49), (0.5, 0.9, 0.99)
PLAIN = {"kind": "v", "tau": 1.0}
CHOICES = {f"skip {skip}, tau {tau:g}": {"kind": "v", "skip": skip, "tau": tau} for skip in SKIPS for tau in TAUS}
OTHERS = {
    "EDM, plain": {"tau": 1.0},
    "EDM, skip 9, tau 0.99": {"skip": 9, "tau": 0.99},
    "eps, plain": {"kind": "eps", "tau": 1.0},
    f"EDM, {LONGER} updates, plain": {"iterations": LONGER, "tau": 1.0},
    f"EDM, {LONGER} updates, skip 9, tau 0.99": {"iterations": LONGER, "skip": 9, "tau": 0.99},
    f"eps, {LONGER} updates, plain": {"iterations": LONGER, "kind": "eps", "tau": 1.0},
    f"eps, {LONGER} updates, skip 1, tau 0.99": {"iterations": LONGER, "kind": "eps", "skip": 1, "tau": 0.99},
    f"eps, {LONGER} updates, skip 9, tau 0.99": {"iterations": LONGER, "kind": "eps", "skip": 9, "tau": 0.99},
}


def scores(bundle: Bundle, evaluator: ImageEvaluator, skip: int = 0, tau: float = 1.0) -> dict[str, float]:
    """Frechet distance with DDIM at every number of steps, noise scaled as by skip and tau, else with the fitted plan too."""
    teacher = Teacher(bundle)
    parametrisation = teacher.denoiser.parametrisation
    space = space_of(parametrisation, mean=0.0, std=1.0)
    plans = {f"ddim{steps}": ddim(parametrisation.grid(steps)) for steps in STEPS}
    if skip:
        for name, plan in plans.items():
            levels = torch.tensor(plan.sigmas[:-1] / plan.alphas[:-1])
            plans[name] = scaled(plan, space.lskip_optimum(levels, skip, tau).numpy())
    else:
        plans["iia10"] = calibrate(bundle, FitConfig(steps=10), name="iia10")[0].plan("iia10")
    inputs = teacher.draw(evaluator.n, seed=0, labels=evaluator.labels)
    return {name: evaluator.distance(teacher.outputs(plan, inputs)) for name, plan in plans.items()}


def trained(folder: Path, name: str, seed: int, images: Images, choice: dict[str, Any]) -> Bundle:
    """The teacher of a loss, found in the folder or trained."""
    path = folder / f"{name.replace(', ', '-').replace(' ', '')}-{seed}.bundle"
    if path.exists():
        return Bundle.load(path)
    return train_teacher(path, images, TeacherConfig(**{"iterations": UPDATES, "seed": seed, **choice}))


def main(data: str, folder: Path) -> None:
    images = open_images(data)
    evaluator = ImageEvaluator(feature_network("classifier", images), open_images(data, "held-out"))
    runs = Runs("lskip", data=data, n=evaluator.n, updates=UPDATES)
    for seed in SEEDS:
        for name, choice in {"plain": PLAIN, **CHOICES, **OTHERS}.items():
            if not runs.has(name, seed):
                runs.add(name, seed, scores(trained(folder, name, seed, images, choice), evaluator))
        for name, choice in CHOICES.items():
            if not runs.has(f"plain, scaled as by {name}", seed):
                found = scores(trained(folder, "plain", seed, images, PLAIN), evaluator, choice["skip"], choice["tau"])
                runs.add(f"plain, scaled as by {name}", seed, found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Whether a fit toward real images buys features with brightness: python benchmarks/brightness.py weak.bundle folder

The teacher of the bundle was trained for a few minutes on the folder, so its images are poor: that is where it happens. Tables
of 4 calls are fitted toward training images in the features of a classifier alone, and with statistics of pixels beside them,
as `fewstep calibrate --data` does; three fits of each. Writes benchmarks/results/brightness.json: distance to held-out images
in another classifier, how far statistics of pixels are off, the share of pixels at 250 or above. Measured on the emoji of
npm's emoji-datasource-google in grey on black, 32x32, a folder for each category; a teacher of `fewstep train --steps 700`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from board import SEEDS
from runs import Runs

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import REFERENCE_STEPS, calibrate_table
from fewstep.calibration.configs import TableConfig
from fewstep.calibration.endtoend import Real
from fewstep.calibration.teacher import Teacher
from fewstep.data import images_like
from fewstep.evaluation.features import FITTING, feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.plan import Plan
from fewstep.sampling.solvers import dpmpp_2m, heun

STEPS, WHITE = 4, 250


def scores(evaluator: ImageEvaluator, images: npt.NDArray[np.uint8]) -> dict[str, float]:
    return evaluator.score(images, evaluator.labels).numbers() | {"white": float((images >= WHITE).mean())}


def main(source: Path, data: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Bundle.load(shutil.copytree(source, Path(directory, source.name)))
        teacher, images, held_out = Teacher(bundle), images_like(bundle, data), images_like(bundle, data, "held-out")
        evaluator = ImageEvaluator(feature_network("classifier", images), held_out)
        both = Real.of(images, feature_network("classifier", images, seed=FITTING))
        toward = {"features alone": Real(both.data, both.models[:1], both.features[:1]), "features and pixels": both}
        grid = teacher.denoiser.parametrisation.grid
        runs = Runs(
            "brightness", n=evaluator.n, steps=STEPS, real_white=float((held_out[np.arange(evaluator.n)][0] >= WHITE).mean())
        )

        def add(arm: str, seed: int, plan: Plan) -> None:
            inputs = teacher.draw(evaluator.n, seed=seed, labels=evaluator.labels)
            runs.add(arm, seed, scores(evaluator, teacher.outputs(plan, inputs)))

        for seed in SEEDS:
            add("teacher, Heun, 35 calls", seed, heun(grid(REFERENCE_STEPS)))
            add("DPM-Solver++(2M), 4 calls", seed, dpmpp_2m(grid(STEPS)))
            for name, real in toward.items():
                if not runs.has(f"table of 4 calls, {name}", seed):
                    _, fit = calibrate_table(
                        Bundle.load(bundle.root), TableConfig(STEPS, seed=100 + seed), name=f"{len(name)}_{seed}", real=real
                    )
                    add(f"table of 4 calls, {name}", seed, fit.plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

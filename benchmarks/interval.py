"""Guidance in an interval against guidance everywhere: python benchmarks/interval.py digits.bundle mnist5k

Sweeps scales and intervals against training images, then evaluates on held-out ones, over sets of seeds: no guidance, every
scale everywhere, and the best interval of every scale. Writes benchmarks/results/interval-NAME.json.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from board import Board, compiled

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Searched
from fewstep.calibration.configs import IntervalConfig
from fewstep.calibration.interval import Steps, calibrate_interval, interval, pareto
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.evaluation.features import feature_network, trial_evaluator
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.system.console import track

CONFIG = IntervalConfig(steps=10, guidance=(1.25, 1.5, 2.0, 3.0))
IMAGES = 500  # for each guidance that is tried


def main(source: Path, data: str) -> None:
    train = open_images(data)
    evaluator = ImageEvaluator(feature_network("classifier", train), open_images(data, "held-out"))
    trying = trial_evaluator(train, IMAGES)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(source, root := Path(directory, source.name))
        bundle, trials = calibrate_interval(Bundle.load(root), CONFIG, dpmpp_2m, trying, name="found", track=track)
        record = bundle.manifest.records.plans["found"]
        assert isinstance(record, Searched)
        teacher = compiled(Teacher(bundle))
        board = Board(
            f"interval-{bundle.manifest.name}",
            teacher,
            evaluator,
            steps=CONFIG.steps,
            tried_on=trying.n,
            levels=record.levels,
            similarity=record.similarity,
            trials=record.trials,
            front=[asdict(trial) for trial in pareto(trials)],
        )
        grid = teacher.denoiser.parametrisation.grid(CONFIG.steps)
        wanted = {"no guidance": Steps(0, grid.n - 1, 1.0)}
        for scale in CONFIG.guidance:
            best = min((t for t in trials if t.steps.scale == scale), key=lambda t: t.value)
            wanted |= {f"{scale:g} everywhere": Steps(0, grid.n - 1, scale), f"{scale:g} in an interval": best.steps}
        for name, steps in wanted.items():
            if name not in board.rows:
                plan = dpmpp_2m(grid, guidance := interval(grid, steps))
                more = {"nfe": plan.nfe, "lo": guidance.lo, "hi": guidance.hi, "steps": steps}
                board.add(name, lambda inputs, plan=plan: teacher.sample(plan, inputs), **more)  # type: ignore[misc]
        board.write()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

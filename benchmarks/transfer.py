"""Tables where they were not fitted: python benchmarks/transfer.py digits.bundle other.bundle mnist5k

Both bundles make the same kind of images, from other training runs. A table is fitted at the guidance scales 1 and 2 on either
teacher, to the many-step image and to real ones; all are evaluated on the first teacher at both, beside DPM-Solver++(2M) on its
usual grid. Writes benchmarks/results/transfer.json: distance to held-out images, and PSNR against 35 calls of the same guidance
and noise.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from board import SEEDS, Board, compiled

from fewstep.artifact.adopt import adopt
from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import REFERENCE_STEPS, calibrate_table
from fewstep.calibration.configs import TableConfig
from fewstep.calibration.endtoend import Real
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.evaluation.features import FITTING, feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Plan
from fewstep.sampling.solvers import dpmpp_2m, heun

STEPS, SCALES = 4, (1.0, 2.0)


def fitted(source: Bundle, target: Bundle, scale: float, real: Real | None) -> dict[float, Plan]:
    """A table of one teacher, fitted at one guidance scale, for the other teacher at all."""
    bundle, _ = calibrate_table(source, TableConfig(STEPS, scale, batch=64, seed=1000), name="fit", real=real)
    found = {}
    for used in SCALES:
        guidance = None if used == scale else Guidance(used)
        found[used] = adopt(target, bundle, "fit", name="adopted", guidance=guidance).plan("adopted")
    return found


def main(here: Path, there: Path, data: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        copies = [Path(directory, name) for name in ("here.bundle", "there.bundle")]
        for source, copy in zip((here, there), copies, strict=True):
            shutil.copytree(source, copy)
        own, other = map(Bundle.load, copies)
        teacher = compiled(Teacher(own))
        images = open_images(data)
        evaluator = ImageEvaluator(feature_network("classifier", images), open_images(data, "held-out"))
        board = Board("transfer", teacher, evaluator, steps=STEPS)
        grid = teacher.denoiser.parametrisation.grid
        plans = {"DPM-Solver++(2M)": {w: dpmpp_2m(grid(STEPS), Guidance(w)) for w in SCALES}}
        real = Real.of(images, feature_network("classifier", images, seed=FITTING))
        for kind, toward in {"many-step image": None, "real images": real}.items():
            for name, source in {"this teacher": own, "another teacher": other}.items():
                for scale in SCALES:
                    title = f"table to {kind}, of {name} at {scale:g}"
                    plans[title] = fitted(source, Bundle.load(own.root), scale, toward)
        for used in SCALES:
            long = heun(grid(REFERENCE_STEPS), Guidance(used))
            reference = [board.images(lambda inputs, plan=long: teacher.sample(plan, inputs), seed) for seed in SEEDS]  # type: ignore[misc]
            for title, found in plans.items():
                plan = found[used]
                row = f"used at {used:g}, {title}"
                board.add(row, lambda inputs, plan=plan: teacher.sample(plan, inputs), reference=reference, nfe=plan.nfe)  # type: ignore[misc]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

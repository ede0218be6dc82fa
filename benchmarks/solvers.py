"""Few network calls from one teacher: diffusers' schedulers, our plans, fitted plans.

    python benchmarks/solvers.py digits.bundle mnist5k classifier [CALLS ...]

Writes benchmarks/results/solvers-NAME.json, row by row, and leaves out rows that are there. For each number of network calls:
distances to held-out images, class accuracy, PSNR and feature distance to the 35-call Heun images of the same noise, over sets
of seeds. Every scheduler gets the same D(x, sigma) from the same noise; those of diffusers walk their own choices of levels in
0.002..80, and where the first set of seeds puts one twice as far as the best of its number of calls, that set has to do. Fits
draw other seeds; those that read images see the training split, in another network than the evaluator's: another classifier
and, beside EfficientNet-Lite0, Lite1. A network of color images computes in bf16, for all alike.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
from board import SEEDS, Board, Make, compiled
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import calibrate, calibrate_table
from fewstep.calibration.configs import FitConfig, TableConfig
from fewstep.calibration.endtoend import Real
from fewstep.calibration.inputs import Drawn
from fewstep.calibration.methods import METHODS
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.evaluation.features import FITTING, feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim, dpmpp_2m, heun, ipndm, spndm

CALLS = (4, 6, 10, 5, 8, 2, 15, 20, 1, 3)
LEAST = 4  # calls of a solver; fewer make no images, only tables are tried there
IMAGES = 1000  # in a set, about
REFERENCE = heun(karras(18, 0.002, 80.0))
# diffusers' schedules are discrete: a thousand of Karras' levels, as betas.
LEVELS = karras(1000, 0.002, 80.0).sigmas[:-1][::-1]
SIGNAL = 1 / (1 + LEVELS**2)
BETAS = (1 - SIGNAL / np.append(1.0, SIGNAL[:-1])).tolist()
SPACINGS = ("karras", "exponential", "beta")
OURS = {"DDIM": ddim, "DPM-Solver++(2M)": dpmpp_2m, "S-PNDM": spndm, "iPNDM": ipndm, "Heun": heun}
MOST = 10  # calls of a table: more takes the longest, and gains little over good solvers
OUTCLASSED = 2.0

Solver = Callable[..., Plan]


class Sampler(NamedTuple):
    """A row to be: make gives what makes its images, where a fit takes a while to. theirs: of diffusers."""

    title: str
    make: Callable[[], Make]
    theirs: bool = False


def schedulers(calls: int) -> dict[str, Any]:
    """diffusers' schedulers for a number of network calls, those that our plans do not equal."""
    found: dict[str, Any] = {}
    for spacing in SPACINGS:
        levels: dict[str, Any] = {"trained_betas": BETAS, f"use_{spacing}_sigmas": True}
        found[f"UniPC, {spacing}"] = diffusers.UniPCMultistepScheduler(**levels, final_sigmas_type="zero")
        found[f"DEIS, {spacing}"] = diffusers.DEISMultistepScheduler(**levels)
        for order in (2, 3):
            if (order, spacing) != (2, "karras"):  # which is our DPM-Solver++(2M)
                found[f"DPM-Solver++ order {order}, {spacing}"] = diffusers.DPMSolverMultistepScheduler(
                    **levels, solver_order=order, final_sigmas_type="zero"
                )
    found["PNDM"] = diffusers.PNDMScheduler(
        trained_betas=BETAS, skip_prk_steps=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    for name, made in found.items():
        made.set_timesteps(calls - (name == "PNDM"))  # which evaluates its first step twice
    return found


def walk(scheduler: Any, teacher: Teacher, inputs: Drawn) -> Tensor:
    """A scheduler's loop around D, in the VP coordinates that it works in."""
    denoise = guided(teacher.denoiser, inputs.condition, inputs.null)
    x, calls = inputs.noise[:, 0], len(scheduler.timesteps)
    scheduler.set_timesteps(calls - isinstance(scheduler, diffusers.PNDMScheduler))
    for i, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, diffusers.PNDMScheduler):
            level = float((1 / scheduler.alphas_cumprod[t] - 1) ** 0.5)
        else:
            level = float(scheduler.sigmas[i])
        alpha = (1 + level**2) ** -0.5
        x = alpha * level * x if i == 0 else x
        eps = (x / alpha - denoise(x / alpha, level)) / level
        x = scheduler.step(eps, t, x).prev_sample
    return x


def steps_of(solver: Solver, calls: int) -> int:
    """A solver's steps for a number of network calls. Heun's are odd: where they cannot be met, it gets one more."""
    return {heun: calls // 2 + 1, spndm: calls - 1}.get(solver, calls)


def titled(name: str, solver: Solver, calls: int) -> str:
    return f"{name}, {calls + 1} calls" if solver is heun and calls % 2 == 0 else name


def samplers(bundle: Bundle, teacher: Teacher, real: Real, calls: int) -> Iterator[Sampler]:
    """All for a number of network calls."""

    def of(plan: Plan) -> Make:
        return lambda inputs: teacher.sample(plan, inputs)

    for name, solver in OURS.items() if calls >= LEAST else ():
        plan = solver(karras(steps_of(solver, calls), 0.002, 80.0))
        yield Sampler(titled(name, solver, calls), lambda plan=plan: of(plan))  # type: ignore[misc]
    for name, made in schedulers(calls).items() if calls >= LEAST else ():
        yield Sampler(name, lambda made=made: lambda inputs: walk(made, teacher, inputs), theirs=True)  # type: ignore[misc]
    for title, images in {"table, pixels": None, "table, real": real}.items() if calls <= MOST else ():
        table = TableConfig(calls, batch=64, seed=1000)
        yield Sampler(title, lambda t=table, r=images: of(calibrate_table(bundle, t, name="fit", real=r)[0].plan("fit")))  # type: ignore[misc]
    for name, method in METHODS.items() if calls >= LEAST else ():
        config = FitConfig(method=name, steps=steps_of(method.solver, calls), samples=128, batch=32, seed=1000)
        title = titled(method.title, method.solver, calls)
        yield Sampler(title, lambda c=config: of(calibrate(bundle, c, name="fit")[0].plan("fit")))  # type: ignore[misc]


def main(source: Path, data: str, features: str, calls: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(source, root := Path(directory, source.name))
        bundle, images, held_out = Bundle.load(root), open_images(data), open_images(data, "held-out")
        evaluator = ImageEvaluator(feature_network(features, images), held_out.about(IMAGES))
        fitting = dict.fromkeys(("classifier", features))
        real = Real.of(images, *(feature_network(of, images, seed=FITTING) for of in fitting))
        bf16 = bundle.manifest.state.channels == 3
        teacher = compiled(Teacher(bundle), bf16=bf16)
        board = Board(f"solvers-{bundle.manifest.name}", teacher, evaluator, features=features, bf16=bf16)
        some = (np.random.default_rng(seed).permutation(len(images))[: evaluator.n] for seed in SEEDS)
        board.about["real"] = [evaluator.distance(images[at][0]) for at in some]  # what training images come to
        reference = [board.images(lambda inputs: teacher.sample(REFERENCE, inputs), seed) for seed in SEEDS]
        if (name := f"{REFERENCE.nfe}, Heun, the reference") not in board.rows:
            board.add(name, lambda inputs: teacher.sample(REFERENCE, inputs), made=reference, reference=reference)
        for n in calls:
            for sampler in samplers(bundle, teacher, real, n):
                if (name := f"{n}, {sampler.title}") in board.rows:
                    continue
                most = OUTCLASSED * min(
                    (r["frechet"]["mean"] for k, r in board.rows.items() if k.startswith(f"{n}, ")), default=inf
                )
                enough = (lambda first, most=most: first > most) if sampler.theirs else (lambda _: False)
                board.add(name, sampler.make(), reference=reference, enough=enough)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], tuple(map(int, sys.argv[4:])) or CALLS)

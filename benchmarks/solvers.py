"""Few network calls from one teacher: diffusers' schedulers, our plans, fitted plans.

    python benchmarks/solvers.py digits.bundle mnist5k [CALLS ...]

Writes benchmarks/results/solvers-NAME.json, row by row, and leaves out rows that are there. For each number of network calls:
distances to held-out images, class accuracy, PSNR and feature distance to the 35-call Heun images of the same noise, over sets
of seeds. Every scheduler gets the same D(x, sigma) from the same noise; those of diffusers walk their own choices of levels in
0.002..80, and where the first set of seeds puts one twice as far as the best of its number of calls, that set has to do. Fits
draw other seeds; those that read images see the training split, in another classifier than the judge's.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewstep.bundle import Bundle
from fewstep.calibration.cache import default_folder
from fewstep.calibration.calibrate import FitConfig, TableConfig, calibrate, calibrate_table
from fewstep.calibration.classifier import classifier
from fewstep.calibration.inputs import Inputs
from fewstep.calibration.methods import METHODS
from fewstep.calibration.metrics import Judge
from fewstep.calibration.teacher import Teacher
from fewstep.calibration.toward import loss_toward
from fewstep.data import open_images
from fewstep.denoiser import Denoiser
from fewstep.guidance import guided
from fewstep.plan import Plan
from fewstep.schedule import karras
from fewstep.solvers import ddim, dpmpp_2m, heun, ipndm, spndm

RESULTS = Path(__file__).parent / "results"
CALLS = (4, 6, 10, 5, 8, 15, 20)
SEEDS = (0, 1, 2)
REFERENCE = heun(karras(18, 0.002, 80.0))
# diffusers' schedules are discrete: a thousand of Karras' levels, as betas.
LEVELS = karras(1000, 0.002, 80.0).sigmas[:-1][::-1]
SIGNAL = 1 / (1 + LEVELS**2)
BETAS = (1 - SIGNAL / np.append(1.0, SIGNAL[:-1])).tolist()
SPACINGS = ("karras", "exponential", "beta")
OURS = {"DDIM": ddim, "DPM-Solver++(2M)": dpmpp_2m, "S-PNDM": spndm, "iPNDM": ipndm, "Heun": heun}
TABLES = ("pixels", "features", "real")
MOST = 10  # calls of a table: more takes the longest, and gains little over good solvers
OUTCLASSED = 2.0

Make = Callable[[Inputs], Tensor]  # last states
Solver = Callable[..., Plan]


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


def walk(scheduler: Any, teacher: Teacher, inputs: Inputs) -> Tensor:
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


def fits(bundle: Bundle, source: str, calls: int) -> dict[str, Callable[[str], Bundle]]:
    """What to fit for a number of network calls, by title; each takes the name of the plan to add."""
    found: dict[str, Callable[[str], Bundle]] = {}
    for name, method in METHODS.items():
        config = FitConfig(name, steps_of(method.solver, calls), samples=128, batch=32, seed=1000)
        found[titled(method.title, method.solver, calls)] = lambda plan, config=config: calibrate(bundle, config, name=plan)[0]  # type: ignore[misc]
    for toward in TABLES if calls <= MOST else ():
        table = TableConfig(calls, toward=toward, batch=64, seed=1000)
        loss = loss_toward(toward, source)
        found[f"table, {toward}"] = lambda plan, table=table, loss=loss: calibrate_table(bundle, table, name=plan, loss=loss)[0]  # type: ignore[misc]
    return found


class Compiled(nn.Module):
    """A denoiser, compiled; levels go in as a tensor, since every new number would be compiled anew."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.parametrisation = denoiser.parametrisation
        self.net = torch.compile(denoiser)

    def forward(self, x: Tensor, sigma: float, *condition: Tensor) -> Tensor:
        denoised: Tensor = self.net(x, torch.full((len(x),), sigma), *condition)
        return denoised


class Board:
    """The result file, and what judges its rows."""

    def __init__(self, path: Path, teacher: Teacher, judge: Judge) -> None:
        from fewstep.machine import described

        self.path, self.teacher, self.judge = path, teacher, judge
        self.result: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": {}}
        self.result |= {"machine": described(), "date": str(date.today()), "n": judge.n, "seeds": SEEDS}
        self.reference: dict[int, npt.NDArray[np.uint8]] = {}

    def inputs(self, seed: int) -> Inputs:
        """The judge's labels, noise of a set of seeds."""
        drawn = self.teacher.draw(self.judge.n, seed=seed)
        labels = torch.tensor(self.judge.labels)
        return Inputs(drawn.noise, (labels,), (torch.full_like(labels, self.teacher.manifest.condition.classes),))

    def known(self, calls: int, name: str) -> bool:
        return f"{calls}, {name}" in self.result["rows"]

    def best(self, calls: int) -> float:
        """The least distance so far at a number of calls."""
        rows: dict[str, Any] = self.result["rows"]
        return min(
            (row["frechet"]["mean"] for name, row in rows.items() if name.startswith(f"{calls}, ")), default=float("inf")
        )

    def add(self, calls: int, name: str, make: Make, *, full: bool = True, **more: Any) -> None:
        """Judge a sampler on all seeds, unless not `full` and the first ones say that it is outclassed, and write its row."""
        found: dict[str, list[float]] = {}
        for seed in SEEDS:
            if found and not full and found["frechet"][0] > OUTCLASSED * self.best(calls):
                break
            inputs = self.inputs(seed)
            parts = [inputs[i : i + self.teacher.batch] for i in range(0, len(inputs), self.teacher.batch)]
            with torch.no_grad():
                images = self.teacher.rounded(torch.cat([make(part) for part in parts]))
            self.reference.setdefault(seed, images)  # the first row is the reference
            scores = asdict(self.judge.score(images, self.judge.labels)) | asdict(self.judge.pair(images, self.reference[seed]))
            for key, value in scores.items():
                found.setdefault(key, []).append(value)
        kept = {key: values for key, values in found.items() if key != "n" and values[0] is not None}
        row = {key: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None} for key, v in kept.items()}
        self.result["rows"][f"{calls}, {name}"] = row | more
        self.path.write_text(json.dumps(self.result, indent=1) + "\n", "utf-8")
        print(f"{calls:3} {name:32} {row['frechet']['mean']:8.2f} ± {row['frechet']['std'] or float('nan'):.2f}", flush=True)


def main(source: Path, data: str, calls: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, source.name)
        shutil.copytree(source, root)
        bundle = Bundle.load(root)
        judge = Judge(classifier(open_images(data), default_folder()), open_images(data, "held-out"))
        teacher = Teacher(bundle)
        teacher.denoiser = Compiled(teacher.denoiser)  # type: ignore[assignment]
        board = Board(RESULTS / f"solvers-{bundle.manifest.name}.json", teacher, judge)
        board.add(REFERENCE.nfe, "Heun, the reference", lambda inputs: teacher.sample(REFERENCE, inputs))
        for n in calls:
            plans: dict[str, Plan] = {}
            for name, solver in OURS.items():
                plans[titled(name, solver, n)] = solver(karras(steps_of(solver, n), 0.002, 80.0))
            for name, plan in plans.items():
                if not board.known(n, name):
                    board.add(n, name, lambda inputs, plan=plan: teacher.sample(plan, inputs))  # type: ignore[misc]
            for name, made in schedulers(n).items():
                if not board.known(n, name):
                    board.add(n, name, lambda inputs, made=made: walk(made, teacher, inputs), full=False)  # type: ignore[misc]
            for name, fit in fits(bundle, data, n).items():
                if board.known(n, name):
                    continue
                begin = time.perf_counter()
                fitted = fit("fitted").plan("fitted")
                seconds = time.perf_counter() - begin
                board.add(n, name, lambda inputs, plan=fitted: teacher.sample(plan, inputs), fit_seconds=seconds)  # type: ignore[misc]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3:])) or CALLS)

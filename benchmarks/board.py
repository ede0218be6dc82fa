"""A result file with a row for each sampler: evaluated on sets of seeds, written row by row, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewstep.calibration.inputs import Drawn
from fewstep.calibration.teacher import Teacher
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.models.denoiser import Denoiser
from fewstep.system.machine import described

__all__ = ["RESULTS", "SEEDS", "Board", "Make", "compiled"]

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
Make = Callable[[Drawn], Tensor]  # last states


class _Compiled(nn.Module):
    """A denoiser, compiled; levels go in as a tensor, since every new number would be compiled anew."""

    def __init__(self, denoiser: Denoiser, *, bf16: bool) -> None:
        super().__init__()
        self.parametrisation, self.bf16 = denoiser.parametrisation, bf16
        self.net = torch.compile(denoiser)

    def forward(self, x: Tensor, sigma: float, *condition: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            denoised: Tensor = self.net(x, torch.full((len(x),), sigma), *condition)
        return denoised.float()


def compiled(teacher: Teacher, *, bf16: bool = False) -> Teacher:
    """The teacher with a faster network, in bf16 where that is what all samplers are to get."""
    teacher.denoiser = _Compiled(teacher.denoiser, bf16=bf16)  # type: ignore[assignment]
    return teacher


class Board:
    """Evaluates what makes images from the same noise and labels, and keeps rows in a file. `about` goes into it, too."""

    def __init__(self, name: str, teacher: Teacher, evaluator: ImageEvaluator, **about: Any) -> None:
        self.path, self.teacher, self.evaluator = RESULTS / f"{name}.json", teacher, evaluator
        found = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self.rows: dict[str, Any] = found.get("rows", {})
        self.about = {"machine": described(), "n": evaluator.n, "seeds": SEEDS, **about}

    def inputs(self, seed: int) -> Drawn:
        """The evaluator's labels, noise of a set of seeds."""
        return self.teacher.draw(self.evaluator.n, seed=seed, labels=self.evaluator.labels)

    def images(self, make: Make, seed: int) -> npt.NDArray[np.uint8]:
        """(n, C, H, W)"""
        inputs = self.inputs(seed)
        parts = [inputs[i : i + self.teacher.batch] for i in range(0, len(inputs), self.teacher.batch)]
        with torch.no_grad():
            return self.teacher.rounded(torch.cat([make(part) for part in parts]))

    def add(
        self,
        name: str,
        make: Make,
        *,
        made: Sequence[npt.NDArray[np.uint8]] | None = None,
        reference: Sequence[npt.NDArray[np.uint8]] | None = None,
        enough: Callable[[float], bool] = lambda _: False,
        **more: Any,
    ) -> None:
        """Evaluate a sampler and write its row. made: its images, where they are there already. reference: images to be paired
        with, for each set of seeds. enough: whether the first set's Frechet distance makes the others needless."""
        found: dict[str, list[float]] = {}
        for i, seed in enumerate(SEEDS):
            if found and enough(found["frechet"][0]):
                break
            images = made[i] if made else self.images(make, seed)
            scores = self.evaluator.score(images, self.evaluator.labels).numbers()
            if reference:
                scores |= self.evaluator.pair(images, reference[i])
            for key, value in scores.items():
                found.setdefault(key, []).append(value)
        row = {key: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None} for key, v in found.items()}
        self.rows[name] = row | more
        self.write()
        print(f"{name:36} {row['frechet']['mean']:8.2f} ± {row['frechet']['std'] or float('nan'):.2f}", flush=True)

    def write(self) -> None:
        """Replace the file."""
        self.path.write_text(json.dumps({**self.about, "rows": self.rows}, indent=1) + "\n", "utf-8")

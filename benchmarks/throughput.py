"""Training throughput: python benchmarks/throughput.py

Images per second of `train_teacher` against a plain loop around the same network, data, loss, optimizer, average and precision,
and on one process against two under torchrun, a thread each. Fresh processes, in turns over several rounds. Writes
benchmarks/results/throughput.json.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fewstep.data import Images, open_images
from fewstep.models.denoiser import unet
from fewstep.models.mixed_precision import autocast, precision_here
from fewstep.system.machine import described
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher

RESULT = Path(__file__).parent / "results" / "throughput.json"
ROUNDS, WARM = 3, 20
# Channels of the network, batch, updates that are timed.
SIZES = {"demo": ((32, 64), 32, 200), "larger": ((64, 128), 32, 60)}
WAYS = {"train": 1, "plain": 1, "train, 2 processes": 2}


def config(size: str) -> TeacherConfig:
    channels, batch, steps = SIZES[size]
    precision = precision_here("auto", torch.device("cpu"), "every way").precision
    lone = {"tau": 1.0, "checkpoint_every": 10**6, "mixed_precision": precision}
    return TeacherConfig(iterations=WARM + steps + 1, batch=batch, channels=channels, **lone)


class Clock:
    """Times the updates after the first WARM."""

    def track(self, steps: Iterable[Any], _: str) -> Iterator[Any]:
        for i, step in enumerate(steps):
            if i == WARM:
                self.begin = time.perf_counter()
            self.end = time.perf_counter()
            yield step


def plain(images: Images, choice: TeacherConfig, clock: Clock) -> None:
    """What one would write by hand, for this one network and loss."""
    classes = 1 + int(images.labels.max())
    net = unet(images.state, images.signature.inputs, channels=choice.channels, layers=1, attention=False, patch=2)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=choice.lr, betas=(0.9, 0.99), fused=True)
    rng = np.random.default_rng(0)
    for _ in clock.track(range(choice.iterations), "plain"):
        pixels, labels = images[rng.integers(len(images), size=choice.batch)]
        x0, condition = torch.from_numpy(pixels).float() / 127.5 - 1, torch.from_numpy(labels)
        condition = torch.where(torch.rand(choice.batch) < choice.drop_label, classes, condition)
        sigma = (choice.noise_mean + choice.noise_std * torch.randn(choice.batch)).exp()
        x = x0 + sigma.reshape(-1, 1, 1, 1) * torch.randn_like(x0)
        with autocast(choice.mixed_precision, torch.device("cpu")):
            denoised = net(x, sigma, condition)
        weight = (sigma**2 + choice.sigma_data**2) / (sigma * choice.sigma_data) ** 2
        loss = (weight * (denoised.float() - x0).square().mean((1, 2, 3))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 0.01)


def worker(way: str, size: str, out: Path) -> None:
    """Times one way in this process, and writes images per second."""
    images, choice, clock = open_images("mnist5k"), config(size), Clock()
    if way == "plain":
        plain(images, choice, clock)
    else:
        train_teacher(out.with_suffix(".bundle"), images, choice, track=clock.track)
    if int(os.environ.get("RANK", "0")) == 0:
        out.write_text(str((choice.iterations - WARM - 1) * choice.batch / (clock.end - clock.begin)), "utf-8")


def measured(way: str, size: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "seconds.txt")
        processes = WAYS[way]
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
        command = [sys.executable, "-W", "ignore", *launch, __file__, way, size, str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        return float(out.read_text("utf-8"))


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {size: {way: [] for way in WAYS} for size in SIZES}
    for _ in range(ROUNDS):
        for size, ways in found.items():
            for way, speeds in ways.items():
                speeds.append(measured(way, size))
                print(f"{size:8} {way:20} {speeds[-1]:8.1f} images/s", flush=True)
    rows = {
        size: {way: spread(speeds) for way, speeds in ways.items()}
        | {"train over plain": spread(ratios(ways["train"], ways["plain"]))}
        | {"2 processes over 1": spread(ratios(ways["train, 2 processes"], ways["train"]))}
        for size, ways in found.items()
    }
    RESULT.write_text(json.dumps({"machine": described(), "rounds": ROUNDS, "rows": rows}, indent=1) + "\n", "utf-8")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], Path(sys.argv[3])) if len(sys.argv) > 1 else main()

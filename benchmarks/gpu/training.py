"""Part three: how fast teachers and generators learn on a GPU, whether as they do on a CPU, and whether a kill is survived."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Distilled, Trained
from fewstep.data import Images
from fewstep.system.progress import Track, silent
from fewstep.trainer.checkpoint import checkpoint_path
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import _network, train_teacher
from gpu.job import Work
from gpu.scale import Scale

__all__ = ["equal", "on_cpu", "rates", "resume", "train_equal"]

WARM = 5  # updates that are not timed
LEAST_SECONDS = 2.0  # without as many left, no other run begins
# Of networks that learn: side, channels of the image, channels of the network, patch, batch, updates of the CPU.
SIZES: dict[str, tuple[int, int, tuple[int, ...], int, int, int]] = {
    "digits": (28, 1, (32, 64), 2, 32, 20),
    "color": (32, 3, (128, 256), 1, 128, 2),
    "tiny": (8, 1, (8,), 1, 4, 1),
}
# What networks compute in: the trainer's precision, and whether fp32 may round to TF32, as torch lets convolutions do.
PRECISIONS = {"bf16": ("bf16", True), "fp32": ("no", False), "fp32, TF32": ("no", True)}
# How far weights may end from the CPU's in fp32, over how far those moved. On one CPU, 50 updates with other kernels end 5e-6
# (teacher) and 1e-4 (SiD) apart, those in bf16 0.011 and 0.75: SiD's loss is the difference of two networks almost equal.
TOLERANCE = {
    "teacher": {"fp32": 1e-3, "fp32, TF32": 0.02, "bf16": 0.1},
    "SiD": {"fp32": 0.02, "fp32, TF32": 0.5, "bf16": 1.5},
}


def images_of(size: str) -> Images:
    """Random images, the same everywhere."""
    side, channels, *_ = SIZES[size]
    pixels = np.random.default_rng(0).integers(0, 256, (512, side, side, channels), np.uint8)
    return Images.of(pixels, np.arange(512) % 10, source="made up")


def config(size: str, precision: str, steps: int) -> TeacherConfig:
    """Of a teacher that saves nothing on the way."""
    _, _, channels, patch, batch, _ = SIZES[size]
    lone = {"tau": 1.0, "checkpoint_every": 10**6, "mixed_precision": precision}
    return TeacherConfig(iterations=steps, batch=batch, channels=channels, patch=patch, **lone)  # type: ignore[arg-type]


class Clock:
    """Times the updates after the first ones, but for the last, which saves; waits for the GPU before it looks at the clock."""

    def __init__(self, warm: int) -> None:
        self.warm, self.looks = warm, list[float]()

    def track(self, steps: Sequence[int], _: str) -> Iterator[int]:
        for i, step in enumerate(steps):
            if i in (self.warm, len(steps) - 1):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.looks.append(time.perf_counter())
            yield step

    def rate(self, updates: int) -> float:
        """Updates a second."""
        return updates / (self.looks[-1] - self.looks[0])


def rates(work: Work) -> None:
    """Updates a second of teachers and generators in every precision; of compiled ones last, for compiling takes longer."""
    for size in work.scale.sizes:
        for name in PRECISIONS:
            if work.has(LEAST_SECONDS, f"{size}, {name}"):
                _rate(work, size, name, work.scale.updates, compiled=False)
                _sid_rate(work, size, name, work.scale.updates)
    for size in work.scale.sizes if work.scale.device == "cuda" else ():
        for name in PRECISIONS:
            if work.has(LEAST_SECONDS, f"{size}, {name}, compiled"):
                _rate(work, size, name, work.scale.updates, compiled=True)


def on_cpu(work: Work) -> None:
    """The same on the CPU beside the GPU, in the precision that is faster there; of the smallest network alone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    size = work.scale.sizes[0]
    _rate(work, size, "auto", SIZES[size][-1], compiled=False)
    _sid_rate(work, size, "auto", SIZES[size][-1])


def _rate(work: Work, size: str, name: str, updates: int, *, compiled: bool) -> None:
    clock, choice = Clock(min(WARM, updates)), _precision(name)
    made = replace(config(size, choice, clock.warm + updates + 1), compile=compiled)
    path = work.scratch / f"rate-{size}.bundle"
    begin = time.perf_counter()
    bundle = train_teacher(_absent(path), images_of(size), made, track=clock.track)
    work.add(
        run="teacher",
        **_about(size, name, _learnt_in(bundle, "teacher")),
        compiled=compiled,
        updates_per_second=clock.rate(updates),
        images_per_second=clock.rate(updates) * made.batch,
        ready_s=clock.looks[0] - begin,
    )


def _sid_rate(work: Work, size: str, name: str, updates: int) -> None:
    """Of a generator that begins from the teacher which _rate left."""
    clock, choice = Clock(min(WARM, updates)), _precision(name)
    batch = SIZES[size][4]
    settings = {"batch": batch, "mixed_precision": choice, "checkpoint_every": 10**6, "guidance": 1.5}
    bundle = distill(
        Bundle.load(work.scratch / f"rate-{size}.bundle"),
        "sid1",
        SidConfig(iterations=clock.warm + updates + 1, **settings),  # type: ignore[arg-type]
        track=clock.track,
    )
    about = _about(size, name, _learnt_in(bundle, "sid1"))
    rate = clock.rate(updates)
    work.add(run="SiD", **about, compiled=False, updates_per_second=rate, images_per_second=rate * batch)


def _precision(name: str) -> str:
    """What the trainer calls a precision of PRECISIONS, and torch's own settings for it."""
    choice, tf32 = PRECISIONS.get(name, (name, True))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    return choice


def _learnt_in(bundle: Bundle, network: str) -> str:
    record = bundle.manifest.records.components[network]
    assert isinstance(record, Trained | Distilled)
    return record.mixed_precision


def _about(size: str, name: str, chosen: str) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"size": size, "device": device, "precision": name if name != "auto" else chosen}


def _absent(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


def train_equal(path: Path, scale: Scale, name: str, *, teacher: Bundle | None = None) -> Bundle:
    """A teacher's updates and then, from it or another bundle's, a generator's, from equal random numbers on every device."""
    choice, size = _precision(name), scale.sizes[0]
    bundle = train_teacher(path, images_of(size), config(size, choice, scale.equal_updates), track=silent)
    if teacher is not None:
        other = path.with_name(f"sid-{path.name}")
        shutil.copytree(teacher.root, _absent(other))
        bundle = Bundle.load(other)
        with bundle.edit() as draft:
            draft.remove("components/sid1")
            del draft.manifest.components["sid1"], draft.manifest.plans["sid1"]
            draft.manifest.default = "heun18"
        bundle = Bundle.load(other)
    batch = SIZES[size][4]
    sid = SidConfig(iterations=scale.equal_updates, batch=batch, mixed_precision=choice, checkpoint_every=10**6)
    return distill(bundle, "sid1", sid)


def equal(work: Work) -> None:
    """Updates on the GPU against the CPU's in fp32: how far weights end from each other, over how far they moved."""
    reference = Bundle.load(work.bundle("equal_cpu"))
    size, wrong = work.scale.sizes[0], []
    for name in PRECISIONS:
        path = _absent(work.scratch / "equal.bundle")
        made = {"SiD": train_equal(path, work.scale, name, teacher=reference), "teacher": Bundle.load(path)}
        torch.manual_seed(0)
        fresh = _network(images_of(size), config(size, "no", 1)).net.state_dict()
        begun = {"teacher": fresh, "SiD": weights(reference, "teacher")}
        for run, network in (("teacher", "teacher"), ("SiD", "sid1")):
            apart = _apart(weights(made[run], network), weights(reference, network), begun[run])
            most = TOLERANCE[run][name] * work.scale.tolerance
            work.add(run=run, precision=name, updates=work.scale.equal_updates, apart=apart, tolerance=most, ok=apart <= most)
            wrong += [] if apart <= most else [f"{run} in {name}"]
    if wrong:
        raise ValueError(f"weights are further from the CPU's than they may be: {', '.join(wrong)}")


def weights(bundle: Bundle, network: str) -> dict[str, Tensor]:
    """Of a network of a bundle."""
    (path,) = bundle.component(network).glob("*.safetensors")
    return load_file(path)


def _apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], begun: dict[str, Tensor]) -> float:
    """|ours - theirs| / |theirs - begun| over all weights."""
    difference = sum(float((ours[key].double() - theirs[key].double()).square().sum()) for key in theirs)
    moved = sum(float((theirs[key].double() - begun[key].double().cpu()).square().sum()) for key in theirs)
    return float((difference / moved) ** 0.5)


def resume(work: Work) -> None:
    """Killed and started again: the weights of an uninterrupted run, as far as two uninterrupted ones have the same."""
    every = -(-work.scale.updates // 3)
    steps = 4 * every
    size = work.scale.sizes[0]
    made = replace(config(size, "auto", steps), checkpoint_every=every)

    def train(name: str, track: Track = silent) -> None:
        train_teacher(work.scratch / f"{name}.bundle", images_of(size), made, track=track)

    def to_its_death(name: str) -> None:
        saved = checkpoint_path(work.scratch / f"{name}.bundle", "teacher")

        def track(steps: Sequence[int], _: str) -> Iterator[int]:
            for step in steps:
                if step == 2 * every + every // 2 and saved.exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                yield step

        train(name, track)

    for name in ("whole", "again"):
        _in_child(lambda name=name: train(name))
    if _in_child(lambda: to_its_death("killed")) != -signal.SIGKILL:
        raise ValueError("the run ended before it was killed")
    _in_child(lambda: train("killed"))
    whole, again, killed = (weights(Bundle.load(work.scratch / f"{n}.bundle"), "teacher") for n in ("whole", "again", "killed"))
    torch.manual_seed(0)
    begun = _network(images_of(size), made).net.state_dict()
    found = {"two_runs_apart": _apart(again, whole, begun), "killed_apart": _apart(killed, whole, begun)}
    equal_bits = {"two_runs_equal": found["two_runs_apart"] == 0, "killed_equal": found["killed_apart"] == 0}
    fine = found["killed_apart"] <= max(3 * found["two_runs_apart"], 1e-6)
    work.add(run="teacher", updates=steps, **found, **equal_bits, ok=fine)
    if not fine:
        raise ValueError("a run that was killed ends further from an uninterrupted one than two of those from each other")


def _in_child(run: Callable[[], None]) -> int:
    """Run in a process of its own, which has a GPU context of its own, and what it ended with."""
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

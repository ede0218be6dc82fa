"""The demo: from a teacher of real digits to a report of its samplers, by the functions behind the verbs.

It joins the four folders, so it stands beside the command line.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.card import write_card
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import LabelInput, State
from fewstep.artifact.spec import Precision
from fewstep.calibration.calibrate import calibrate_table
from fewstep.calibration.configs import TableConfig
from fewstep.calibration.endtoend import Real
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.data import Images, open_images
from fewstep.evaluation.classifier import ClassifierConfig, classifier
from fewstep.evaluation.compare import CompareConfig, compare
from fewstep.evaluation.comparison import Candidate, Comparison, Limits, pick
from fewstep.evaluation.features import FITTING
from fewstep.evaluation.report import write_report
from fewstep.exporter.engine.build import build_engines
from fewstep.exporter.export import export_graphs
from fewstep.models.denoiser import unet
from fewstep.models.mixed_precision import autocast, precision_here
from fewstep.runtime import Generator
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim, dpmpp_2m
from fewstep.system.console import clock, meter, say, track
from fewstep.system.machine import described
from fewstep.system.picture import save_grid
from fewstep.system.places import check_folder
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher

__all__ = ["SAMPLERS", "SHIPPED", "DemoConfig", "draw", "full", "run_demo", "short", "small"]

DATA = "mnist5k"
SHIPPED = Path(__file__).resolve().parents[3] / "examples" / "digits.bundle"  # in the repository; no wheel holds it
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
SOLVERS = {
    "ddim10": ddim(karras(10, 0.002, 80.0)),
    "ddim10_w2": ddim(karras(10, 0.002, 80.0), Guidance(2.0)),
    "ddim10_w2_interval": ddim(karras(10, 0.002, 80.0), Guidance(2.0, 0.3, 10.0)),
    "dpmpp4": dpmpp_2m(karras(4, 0.002, 80.0)),
    "dpmpp6": dpmpp_2m(karras(6, 0.002, 80.0)),
}
CALLS = {"heun18": 35, "ddim10": 10, "dpmpp6": 6, "dpmpp4": 4, "table4": 4, "ddim10_w2": 20, "ddim10_w2_interval": 14}
CALLS |= {"sid2": 2, "sid1": 1}
SHORT = ("heun18", "ddim10", "dpmpp4", "table4", "sid2", "sid1")
FP16 = ("table4", "sid2", "sid1")  # these also get fp16 graphs
BATCH = 32
TIMED = 1300  # images of each sampler that `compare` times it by, at least
EIGHT_BITS: tuple[Precision, ...] = ("int8", "int8-fp16")  # the one-step generator also gets these


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo's parts. teacher, one_step: how to train them; None takes those that the repository ships.

    fitting: the classifier in whose features the table is fitted. samplers: what is exported and compared. engines: graphs to
    build. calls: what may be picked takes no more.
    """

    teacher: TeacherConfig | None
    one_step: SidConfig | None
    two_steps: SidConfig
    fitting: ClassifierConfig
    table: TableConfig
    samplers: tuple[str, ...]
    compare: CompareConfig
    engines: tuple[str, ...]
    calls: int = 4


def short() -> DemoConfig:
    """From the shipped teacher: at most ten minutes on two cores of any x86 processor with AVX2."""
    return DemoConfig(
        teacher=None,
        one_step=None,
        two_steps=SidConfig(steps=2, iterations=60),
        fitting=ClassifierConfig(epochs=4, seed=FITTING),
        table=TableConfig(iterations=40, samples=32, unseen=64),
        samplers=SHORT,
        compare=CompareConfig(DATA, seeds=2, thin=4, seconds=0.1),
        engines=("sid1.fp32", "sid1.fp16", "sid2.fp16"),
    )


def full() -> DemoConfig:
    """Everything anew. The teacher learns for a few minutes, so generators are guided more to learn from it."""
    return replace(
        short(),
        teacher=TeacherConfig(),
        one_step=SidConfig(iterations=220, alpha=1.2, guidance=1.5),
        two_steps=SidConfig(steps=2, iterations=100, guidance=1.5),
        samplers=tuple(SAMPLERS),
    )


def small(config: DemoConfig) -> DemoConfig:
    """The same way with few steps; what learns in it is poor."""
    return replace(
        config,
        teacher=config.teacher and replace(config.teacher, iterations=40),
        two_steps=replace(config.two_steps, iterations=6),
        one_step=config.one_step and replace(config.one_step, iterations=6),
        fitting=replace(config.fitting, epochs=1),
        table=TableConfig(iterations=2, samples=8, unseen=8, batch=8),
        samplers=SHORT[2:],
        compare=CompareConfig(DATA, seeds=2, thin=10, seconds=0.0),
        engines=("sid1.fp32", "sid1.fp16"),
    )


def run_demo(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Run all stages into the directory `out`; those that a stopped run finished are kept.

    Writes first.png, digits.bundle, digits.png, samplers.png, report.html and demo.json, whose content it returns.
    Raises ValueError when `out` holds a demo of other settings, or there is no teacher to begin from.
    """
    check_folder(out)
    if config.teacher is None and not SHIPPED.exists():
        raise ValueError(f"the demo begins from the teacher in {SHIPPED}, which no wheel holds; train one first with --full")
    out.mkdir(parents=True, exist_ok=True)
    _refuse_other_settings(out / "settings.json", config)
    path, images = out / "digits.bundle", open_images(DATA)
    if SHIPPED.exists():
        draw(SHIPPED, "sid1", out / "first.png")
        say(f"{out}/first.png: digits of the shipped one-step generator; now the way to such a one")
    stages = _Stages(_work(config))
    stages.next("teacher", "train a teacher: fewstep train" if config.teacher else "begin from the shipped teacher")
    if not path.exists():
        _teacher(path, images, config.teacher)
    stages.next("table", f"fit 4 network calls to real digits: fewstep calibrate --data {DATA}")
    if not _has(path, "table4"):
        real = Real.of(images, classifier(images, out, config.fitting, track=track))
        calibrate_table(Bundle.load(path), config.table, name="table4", real=real, track=track)
    stages.next("distil", "distil generators of few calls: fewstep distill")
    for name, sid in (("sid2", config.two_steps), ("sid1", config.one_step)):
        if sid and not _has(path, name):
            distill(Bundle.load(path), name, sid, track=track)
    stages.next("export", "network and sampler into one graph: fewstep export")
    _export(path, config.samplers)
    stages.next("build", "TensorRT engines: fewstep build")
    build_engines(Bundle.load(path), config.engines, meter=meter)
    stages.next("compare", f"evaluate the samplers: fewstep compare --data {DATA}")
    found = compare(Bundle.load(path), config.compare, config.samplers, track=track)
    stages.next("decide", "choose one: fewstep pick, fewstep report")
    result = _decide(out, path, found, config.calls)
    stages.end()
    result |= {"machine": described(), "settings": asdict(config), "stages": stages.took}
    result["engines"] = {name: e.model_dump(mode="json") for name, e in Bundle.load(path).manifest.engines.items()}
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


def draw(path: Path, plan: str, out: Path) -> None:
    """A picture of ten digits of every class."""
    generator = Generator.open(path, plan=plan, backend="cpu")
    save_grid(out, generator(labels=np.repeat(range(10), 10), seeds=range(100)), columns=10, scale=2)


def _teacher(path: Path, images: Images, config: TeacherConfig | None) -> None:
    """Train a teacher, or start a bundle with the shipped one and the generator that was distilled from it."""
    if config:
        train_teacher(path, images, config, track=track)
        return
    shipped = Bundle.load(SHIPPED)
    manifest = shipped.manifest
    with Draft.create(path, manifest.signature, state=manifest.state) as draft:
        for name, plan in (("teacher", "heun18"), ("sid1", "sid1")):
            entry = manifest.components[name]
            assert entry.directory
            shutil.copytree(shipped.component(name), draft.root / entry.directory)
            draft.manifest.components[name] = entry
            draft.manifest.plans[plan] = manifest.plans[plan]
            draft.manifest.records.components[name] = manifest.records.components[name]
        draft.manifest.default = "sid1"
        write_card(draft)


def _export(path: Path, samplers: tuple[str, ...]) -> None:
    """All samplers in fp32, those that ship in fp16, one in eight bits."""
    bundle = Bundle.load(path)
    with bundle.edit() as draft:
        for name in samplers:
            if name in SOLVERS:
                draft.manifest.plans[name] = PlanEntry.of(SOLVERS[name], denoiser="teacher", solver=SAMPLERS[name])
    bundle = export_graphs(Bundle.load(path), samplers, ["fp32"], track=track)
    bundle = export_graphs(bundle, FP16, ["fp16"], track=track)
    bundle = calibrate_ranges(bundle, "sid1", EIGHT_BITS, track=track)
    export_graphs(bundle, ["sid1"], EIGHT_BITS, track=track)


def _decide(out: Path, path: Path, found: Comparison, calls: int) -> dict[str, Any]:
    """Make the best sampler of so few calls the default, where one is fit to ship, and show all of them."""
    from fewstep.cli.decide import show_comparison

    bundle = Bundle.load(path)
    show_comparison(found)
    try:
        chosen = pick([Candidate(bundle, name, evaluated) for name, evaluated in found.plans.items()], Limits(calls=calls)).plan
        say(f"picked {chosen}, the best of at most {calls} network calls")
    except ValueError as refused:
        chosen = "sid1"
        say(f"picked {chosen}, though {refused}")
    with bundle.edit() as draft:
        draft.manifest.default = chosen
    write_report(Bundle.load(path), out / "report.html", track=track)
    rows = [Generator.open(path, plan=name, backend="cpu")(labels=range(10), seeds=range(10)) for name in found.plans]
    save_grid(out / "samplers.png", np.concatenate(rows), columns=10, scale=2)
    draw(path, chosen, out / "digits.png")
    say(f"{out}/digits.png: digits of {chosen}; {out}/samplers.png: a row of each sampler; {out}/report.html: all about them")
    return {"picked": chosen, "comparison": found.model_dump(mode="json")}


def _has(path: Path, plan: str) -> bool:
    return plan in Bundle.load(path).manifest.plans


def _refuse_other_settings(path: Path, config: DemoConfig) -> None:
    settings = json.dumps(asdict(config), indent=1, sort_keys=True)
    if not path.exists():
        path.write_text(settings, "utf-8")
    elif path.read_text("utf-8") != settings:
        raise ValueError(f"{path.parent} holds a demo of other settings; remove it or choose another directory with --out")


class _Stages:
    """Says which stage begins and how long what is left will take.

    work: of each stage, in updates of the network. What one takes is measured before the first stage and, from then on, is
    what those came to that are done, but for short ones and what a stopped run had finished.
    """

    def __init__(self, work: Mapping[str, float]) -> None:
        self.work, self.pace = work, _seconds_per_update()
        self.took: dict[str, float] = {}
        self.name, self.start = "", time.monotonic()

    def next(self, name: str, title: str) -> None:
        """A stage begins, and with it the one before has ended."""
        self.end()
        told = [n for n, took in self.took.items() if self.work[n] > 20 and took > 0.1 * self.pace * self.work[n]]
        pace = sum(self.took[n] for n in told) / sum(self.work[n] for n in told) if told else self.pace
        left = pace * sum(work for n, work in self.work.items() if n not in self.took)
        number = f"[{len(self.took) + 1}/{len(self.work)}]"
        say(f"{number} {title}  ({clock(sum(self.took.values()))} so far, about {clock(left)} left in all)")
        self.name, self.start = name, time.monotonic()

    def end(self) -> None:
        """Of the last one."""
        if self.name:
            self.took[self.name] = time.monotonic() - self.start


def _seconds_per_update() -> float:
    """What forward and backward of the network take here, with a teacher's batch."""
    device = torch.device("cpu")
    precision = precision_here("auto", device, "the demo").precision
    net = unet(
        State(channels=1, axes=(28, 28)), [LabelInput(classes=10)], channels=(32, 64), layers=1, attention=False, patch=2
    )
    inputs = torch.zeros(BATCH, 1, 28, 28), torch.ones(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    times = []
    for _ in range(4):
        begin = time.monotonic()
        with autocast(precision, device):
            made = net(*inputs)
        made.float().square().mean().backward()
        times.append(time.monotonic() - begin)
    return min(times)


def _work(config: DemoConfig) -> dict[str, float]:
    """What each stage takes, in updates: counted on two kinds of processor, in bf16 and in fp32, where they differ little."""
    learnt = 4000  # images
    evaluator = ClassifierConfig().epochs * learnt / 128
    table, calls = config.table, sum(CALLS[name] for name in config.samplers)
    images = config.compare.seeds * 1000 / config.compare.thin + TIMED
    sids = [sid for sid in (config.two_steps, config.one_step) if sid]
    return {
        "teacher": 1.4 * config.teacher.iterations if config.teacher else 1,
        "table": 1.2 * config.fitting.epochs * learnt / 128 + 2.5 * table.samples + 5 * table.iterations + 30,
        "distil": sum(6.5 * sid.iterations for sid in sids),
        "export": 42.0 * len(config.samplers),
        "build": 11.0 * len(config.engines),
        "compare": 1.2 * evaluator + calls * images * 0.01,
        "decide": 15.0 * len(config.samplers),
    }

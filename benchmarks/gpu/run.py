"""Everything that is measured on a GPU, in one command: python benchmarks/gpu/run.py --minutes 9 --out OUT

Parts, in this order: correctness, latency, training, teacher. Each has tasks, each task a process of its own with a time limit,
and each part a result file, OUT/PART.json, which is replaced while it goes: whatever ends a run too soon, what was found
until then is there. A task that fails or is too late leaves its reason, and the next one starts. What time a task does not take
is the later ones'. Bundles that tasks need are made meanwhile on the CPU.

--parts takes single tasks, too, as PART.TASK; what an earlier run on the same machine found of the others stays in the file.

The machine needs no network. What it may lack is brought by pack.sh; docs/verification.md has the whole way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT / folder) for folder in ("src", "benchmarks", "tests")]
if __name__ == "__main__":
    sys.path[:1] = PATHS  # in place of this folder, whose files have names that others have, too

from fewstep.system.cores import usable_cores  # noqa: E402
from fewstep.system.machine import this_machine  # noqa: E402
from gpu.job import alone, replace_json, task  # noqa: E402
from gpu.scale import REAL, REHEARSAL, Scale  # noqa: E402

__all__ = ["PARTS", "Kit", "main"]

POLL_SECONDS, GRACE_SECONDS = 0.2, 3.0  # a task is told to end a little before it is ended
SETUP_SECONDS = 90.0  # that reading the machine's facts may take, with the first import of torch
MAX_ERRORS_BYTES = 4 << 20
# Imported once, and every process is forked from there: seconds each. Nothing of this asks for the GPU, which does not survive
# a fork, as diffusers does while it is imported; ONNX Runtime has threads, which do not either. What is missing is left out.
PRELOADED = (
    *("torch", "torch.onnx", "torch._dynamo", "accelerate", "onnxscript.optimizer"),
    *("transformers.modeling_utils", "peft", "scipy.stats", "torchmetrics.image.fid"),
)

# Shares of the time, of parts in the run and of tasks in their part.
PARTS: dict[str, int] = {"correctness": 20, "latency": 45, "training": 15, "teacher": 20}


def tasks_of(part: str, scale: Scale) -> dict[str, int]:
    """A part's tasks, functions of its module, with their shares of its time."""
    if part == "latency":
        plain = ["digits", *(f"large.{name}" for name in scale.large)]
        return dict.fromkeys(plain, 20) | {f"compiled_{name}": 14 for name in reversed(plain)}
    return {
        "correctness": {"shipped": 20, "chosen": 8, "finite": 8, "classes": 45, "digits": 30},
        "training": {"rates": 50, "on_cpu": 15, "equal": 20, "resume": 20},
        "teacher": {"teach": 100},
    }[part]


def _bundle(name: str, folder: str, rehearsal: bool) -> None:
    from gpu.bundles import bundle  # not before the fork: it needs what takes long to import

    bundle(name, folder, rehearsal)


def needed(wanted: Mapping[str, Mapping[str, int]], scale: Scale) -> list[str]:
    """The bundles that tasks of parts need, those that take longest first."""
    latency = {f"large.{name}": [name] for name in reversed(scale.large)} | {"digits": [scale.timed]}
    of = {
        "latency": {f"{how}{name}": bundles for name, bundles in latency.items() for how in ("", "compiled_")},
        "correctness": {"digits": ["digits"] if scale.checked else [], "classes": list(scale.classes)},
        "training": {"equal": ["equal_cpu"]},
    }
    chosen = (name for part, tasks in of.items() for task in tasks if task in wanted.get(part, {}) for name in tasks[task])
    return list(dict.fromkeys(chosen))


def chosen(said: str, scale: Scale) -> dict[str, dict[str, int]]:
    """The tasks that parts or single tasks, commas between, are, with their shares. Raises ValueError where there is none."""
    found: dict[str, dict[str, int]] = {}
    for word in said.split(","):
        part, _, task = word.partition(".")
        if part not in PARTS:
            raise ValueError(f"parts are {', '.join(PARTS)}, got {word!r}")
        tasks = tasks_of(part, scale)
        if task and task not in tasks:
            raise ValueError(f"tasks of {part} are {', '.join(tasks)}, got {task!r}")
        found.setdefault(part, {}).update({task: tasks[task]} if task else tasks)
    return found


def end(process: ForkServerProcess) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # where it had no time to become the first of its group
    process.join()


@dataclass
class Kit:
    """One run. places: of `Work` in job.py, as text, without the task's own file."""

    out: Path
    places: dict[str, str | None]
    scale: Scale
    minutes: float
    machine: dict[str, Any] = field(default_factory=dict)
    ahead: list[str] = field(default_factory=list)
    running: list[ForkServerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = time.time() + 60 * self.minutes
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def run(self, wanted: Mapping[str, Mapping[str, int]]) -> bool:
        """Tasks of parts, with their shares; whether every one was done."""
        if reason := self.refused():
            print(reason, flush=True)
            for part in wanted:
                self.write(part, {}, reason)
            return False
        self.ahead = needed(wanted, self.scale)
        facts = self.task("facts", "facts", min(SETUP_SECONDS, self.left()), {})
        self.machine = facts.get("machine", {})
        print(
            f"{self.machine.get('gpu')}, driver {self.machine.get('driver')}: {facts['status']} {facts['reason']}", flush=True
        )
        fine = facts["status"] == "done"
        shares = {
            part: PARTS[part] * sum(tasks.values()) / sum(tasks_of(part, self.scale).values()) for part, tasks in wanted.items()
        }
        for part, tasks in wanted.items():
            seconds = self.left() * shares[part] / sum(shares.values())
            fine = self.part(part, tasks, seconds) and fine
            del shares[part]
        return fine

    def refused(self) -> str:
        """Why nothing can be measured here, or ""."""
        if self.scale.device == "cuda" and this_machine().gpu is None:
            return "no NVIDIA driver or GPU is here, so nothing was measured; --rehearse tries all of it on a CPU"
        return ""

    def part(self, part: str, wanted: Mapping[str, int], seconds: float) -> bool:
        """Tasks of a part, with their shares; whether every one was done."""
        found = self.before(part, wanted)
        end = time.time() + seconds
        for i, (name, share) in enumerate(wanted.items()):
            left = min(end, self.end) - time.time()
            limit = left * share / sum(list(wanted.values())[i:])
            print(f"{part}: {name}, up to {limit:.0f} s", flush=True)
            self.task(part, name, limit, found)
        return all(found[name]["status"] == "done" for name in wanted)

    def before(self, part: str, wanted: Mapping[str, int]) -> dict[str, Any]:
        """What an earlier run on such a machine found of the tasks that this one has not."""
        path = self.out / f"{part}.json"
        if wanted.keys() == tasks_of(part, self.scale).keys() or not path.exists():
            return {}
        earlier = json.loads(path.read_text("utf-8"))
        if {**earlier["machine"], "date": None} != {**self.machine, "date": None}:
            print(f"{path} is of another machine or of other versions; it is replaced", flush=True)
            return {}
        return {name: task for name, task in earlier["tasks"].items() if name not in wanted}

    def task(self, part: str, name: str, limit: float, found: dict[str, Any]) -> dict[str, Any]:
        """One task, and what its file had in the end, in `found` and the part's file. It is ended after `limit` seconds."""
        begin = time.time()
        own = Path(str(self.places["scratch"]), f"{part}.{name}.json")
        order = {**self.places, "out": str(own), "end": begin + limit - GRACE_SECONDS, "rehearsal": self.scale is REHEARSAL}
        process = self.start(task, part, name, order)
        seen = 0
        found[name] = {"status": "running", "reason": "", "rows": []}
        while process.is_alive() and time.time() < begin + limit:
            time.sleep(POLL_SECONDS)
            self.make_ahead()
            if own.exists() and own.stat().st_mtime_ns != seen:
                seen = own.stat().st_mtime_ns
                found[name] |= json.loads(own.read_text("utf-8"))
                self.write(part, found)
        late = process.is_alive()
        end(process)
        self.running.remove(process)
        found[name] |= json.loads(own.read_text("utf-8")) if own.exists() else {}
        if found[name]["status"] == "running":
            how = f"took longer than its {limit:.0f} s" if late else f"ended with {process.exitcode}, see errors.log"
            found[name] |= {"status": "over time" if late else "failed", "reason": f"{name} {how}"}
        found[name]["seconds"] = round(time.time() - begin, 1)
        if found[name]["status"] != "done":
            print(f"{part}: {name}: {found[name]['status']}: {found[name]['reason']}", flush=True)
        self.write(part, found)
        return dict(found[name])

    def write(self, part: str, found: dict[str, Any], reason: str = "") -> None:
        """The part's result file."""
        if part not in PARTS:
            return
        states = {task["status"] for task in found.values()}
        whole = states == {"done"} and found.keys() == tasks_of(part, self.scale).keys()
        status = "done" if whole else "incomplete"
        content = {"part": part, "status": status, "reason": reason, "machine": self.machine, "tasks": found}
        replace_json(self.out / f"{part}.json", content)

    def make_ahead(self) -> None:
        """Start what makes the next bundles, as many at once as there is room for beside the task."""
        making = [process for process in self.running if process.is_alive()]
        while self.ahead and len(making) <= max(1, usable_cores() // 2):
            name, place = self.ahead.pop(0), Path(str(self.places["bundles"]))
            if not any((place / f"{begun}{name}.bundle").exists() for begun in ("", "new-")):
                rehearsal = self.scale is REHEARSAL
                making.append(self.start(_bundle, name, str(place), rehearsal, CUDA_VISIBLE_DEVICES=""))

    def start(self, run: Callable[..., None], *arguments: Any, **environment: str) -> ForkServerProcess:
        """Run a function in a process of its own, whose errors go into a file."""
        given = (run, self.out / "errors.log", environment, *arguments)
        process = self.context.Process(target=alone, args=given)
        process.start()
        self.running.append(process)
        return process

    def left(self) -> float:
        """Seconds of the whole run."""
        return self.end - time.time()

    def close(self) -> None:
        """End whatever still runs."""
        for process in self.running:
            end(process)
        errors = self.out / "errors.log"
        if errors.exists() and errors.stat().st_size > MAX_ERRORS_BYTES:
            errors.write_bytes(errors.read_bytes()[-MAX_ERRORS_BYTES:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure on a GPU what fewstep says of itself.")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="a folder for results")
    parser.add_argument("--parts", default=",".join(PARTS), help="some, or some tasks as PART.TASK, commas between")
    parser.add_argument("--data", type=Path, help="the color set of the part teacher, see color.py")
    parser.add_argument(
        "--bundles", type=Path, help="a folder where bundles.py made some before, or makes them now; it is kept"
    )
    parser.add_argument("--before", type=Path, help="the folder with an earlier run's teacher, which then learns on")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks on the CPU")
    given = parser.parse_args(arguments)
    scale = REHEARSAL if given.rehearse else REAL
    try:
        wanted = chosen(given.parts, scale)
    except ValueError as error:
        parser.error(str(error))
    if not given.minutes > 0:
        parser.error(f"a run takes more than 0 minutes, got {given.minutes:g}")
    if missing := [path for path in (given.data, given.before, given.bundles) if path and not path.exists()]:
        parser.error(f"{missing[0]} is not there")
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    scratch = Path(tempfile.mkdtemp(prefix="fewstep-gpu-"))
    absolute = {key: str(path.resolve()) if path else None for key, path in (("data", given.data), ("before", given.before))}
    bundles = str((given.bundles or scratch).resolve())
    places = {"scratch": str(scratch), "bundles": bundles, "kept": str(given.out.resolve()), **absolute}
    kit = Kit(given.out.resolve(), places, scale, given.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return 0 if kit.run(wanted) else 1
    finally:
        kit.close()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

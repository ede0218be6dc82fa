"""What the runtime adds to ONNX Runtime, and what others take: python benchmarks/generator.py demo/digits.bundle [PART ...]

Parts: overhead, others, memory; all of them unless some are named. Writes benchmarks/results/generator.json. One graph on the
CPU. Overhead: Generator(labels=..., seeds=...) against the bare run of the same session on the same bound buffers, and against
that with the noise of the same seeds drawn into them first, call by call in turns, in several processes. Others: see
latency.py. Memory: resident set over many calls.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from latency import build as other
from latency import write_plain
from turns import Run, in_turns

from fewstep.artifact.bundle import Bundle
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise_into

RESULT = Path(__file__).parent / "results" / "generator.json"
PLANS, BATCHES = ("sid1", "sid2"), (1, 8)
PROCESSES, PAIRS, SETTLE = 7, 1600, 50  # pairs at batch 1; fewer at larger ones
OTHERS = ("Generator", "baked", "eager torch", "torch.compile", "diffusers scheduler", "Python loop over ONNX")
CALLS, SAMPLES = 20_000, 20


def pairs(pipe: Connection, root: Path, plan: str, batch: int) -> None:
    """ms of the bare run, of the noise and the run, and of the Generator, in turns."""
    generator = Generator.open(root, plan=plan, precision="fp32", backend="cpu")
    labels, seeds = [i % 10 for i in range(batch)], list(range(batch))
    with generator._pool.borrow(batch) as binding:
        bare = binding  # the same buffers: what lies where in memory matters more than what is measured

    def seeded() -> None:
        noise_into(bare.inputs["noise"], seeds)
        bare.run()

    times = np.empty((PAIRS // batch + SETTLE, 3))
    for row in times:
        for way, run in enumerate((bare.run, seeded, lambda: generator(labels=labels, seeds=seeds))):
            begin = time.perf_counter()
            run()
            row[way] = (time.perf_counter() - begin) * 1e3
    pipe.send(times[SETTLE:])


def overhead(root: Path, plan: str, batch: int) -> dict[str, Any]:
    """Over fresh processes: mean and spread of each one's medians and 99th percentiles."""
    context, found = get_context("spawn"), []
    for _ in range(PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=pairs, args=(theirs, root, plan, batch))
        process.start()
        found.append(ours.recv())
        process.join()
    rows: dict[str, list[float]] = {}
    for times in found:
        for way, column in zip(("bare", "seeded", "generator"), times.T, strict=True):
            rows.setdefault(f"{way}_p50_ms", []).append(float(median(column)))
            rows.setdefault(f"{way}_p99_ms", []).append(float(np.percentile(column, 99)))
        rows.setdefault("overhead_us", []).append(float(median(times[:, 2] - times[:, 0])) * 1e3)
        rows.setdefault("overhead_over_seeded_us", []).append(float(median(times[:, 2] - times[:, 1])) * 1e3)
    return {name: {"mean": mean(v), "std": stdev(v), "median": median(v)} for name, v in rows.items()}


def build(way: str, root: Path, plain: Path, plan: str, batch: int) -> Run | None:
    """One way to make a plan's images, as in latency.py."""
    return other(way, root, plain, plan, batch)


def resident(pipe: Connection, root: Path) -> None:
    """Resident bytes along many calls of changing batches."""
    generator = Generator.open(root, plan="sid1", precision="fp32", backend="cpu")
    generator.warm_up()
    found = []
    for call in range(CALLS + 1):
        if call % (CALLS // SAMPLES) == 0:
            found.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        batch = 1 + call % 4
        generator(labels=[0] * batch, seeds=range(call, call + batch))
    pipe.send(found)


def overheads(root: Path) -> dict[str, Any]:
    found = {}
    for plan in PLANS:
        for batch in BATCHES:
            found[f"{plan}, batch {batch}"] = row = overhead(root, plan, batch)
            print(f"{plan} batch {batch}: {row['bare_p50_ms']['median']:.3f} ms + {row['overhead_us']['median']:.1f} us")
    return found


def others(root: Path) -> dict[str, Any]:
    from fewstep.models.denoiser import load_network

    found, bundle = {}, Bundle.load(root)
    with tempfile.TemporaryDirectory() as directory:
        for plan in PLANS:
            plain = Path(directory, f"{plan}.onnx")
            write_plain(load_network(bundle, bundle.manifest.plans[plan].denoiser), plain)
            found[plan] = ways = in_turns(build, {way: (way, bundle.root, plain, plan, 1) for way in OTHERS})
            for way, row in ways.items():
                row["over_generator"] = row["median_ms"] / ways["Generator"]["median_ms"]
                print(f"{plan} batch 1: {way:22} {row['median_ms']:8.3f} ms  {row['over_generator']:.2f} x")
    return found


def memory(root: Path) -> dict[str, Any]:
    ours, theirs = get_context("spawn").Pipe()
    get_context("spawn").Process(target=resident, args=(theirs, root)).start()
    found = ours.recv()
    print(f"resident after {CALLS // SAMPLES} calls {found[1] / 1e6:.1f} MB, after {CALLS} {found[-1] / 1e6:.1f} MB")
    return {"calls": CALLS, "resident_bytes": found}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"overhead": overheads, "others": others, "memory": memory}


def main(root: Path, parts: list[str]) -> None:
    from fewstep.system.machine import described

    result: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if parts and RESULT.exists() else {}
    result |= {"machine": described(), "processes": PROCESSES, "pairs": PAIRS}
    for part in parts or PARTS:
        result[part] = PARTS[part](root)
        result.setdefault("dates", {})[part] = str(date.today())
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""How many threads, and whether they spin: python benchmarks/threads.py [BUNDLE]

Writes benchmarks/results/threads.json: milliseconds of the shipped digits on the CPU with ONNX Runtime's own settings, with all
cores, half of them, and so on, asleep or spinning while they wait, and as the Generator chooses at warm-up; alone, bound to one
core, and two plans in turn in one process. Every way is a process, in turns (turns.py).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from turns import Run, in_turns

from fewstep.artifact.bundle import Bundle
from fewstep.backends.base import buffers
from fewstep.backends.onnx import OnnxBinding, OnnxProgram
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise_into
from fewstep.system.cores import usable_cores
from fewstep.system.machine import described

HERE = Path(__file__).parent
RESULT = HERE / "results" / "threads.json"
CASES = {"alone": ("sid1",), "bound to one core": ("sid1",), "two plans in turn": ("sid1", "sid2")}
BATCHES = (1, 8, 32)
WAITS = {
    "asleep": {"session.intra_op.allow_spinning": "0"},
    "spinning in calls": {"session.force_spinning_stop": "1"},
    "spinning": {},
}


def build(case: str, threads: int | None, wait: str, root: Path, batch: int) -> Run:
    """One way: threads None is the Generator's choice, 0 ONNX Runtime's."""
    if case == "bound to one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = Bundle.load(root)
    if threads is None:
        generators = [Generator(bundle, plan=plan, precision="fp32", backend="cpu") for plan in CASES[case]]
        for generator in generators:
            generator.warm_up()
            print(f"  {generator.graph}: {generator.reason}")
        inputs = generators[0].example(batch)
        return lambda: [generator.make(inputs) for generator in generators][-1]
    bindings = [bound(bundle, f"{plan}.fp32", threads, wait, batch) for plan in CASES[case]]

    def run() -> np.ndarray:
        for binding in bindings:
            noise_into(binding.inputs["noise"], range(batch))
            binding.run()
        return np.array(bindings[-1].outputs["images"])

    return run


def bound(bundle: Bundle, graph: str, threads: int, wait: str, batch: int) -> OnnxBinding:
    """A session of our own settings, but for the threads."""
    path = bundle.file(bundle.manifest.graphs[graph].file)
    program, options = OnnxProgram(path, graph, threads=1), ort.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in WAITS[wait].items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = OnnxBinding(program, session, buffers(program.inputs, batch), buffers(program.outputs, batch))
    for name, values in bundle.manifest.signature.example(batch, guided=False).items():
        binding.inputs[name][:] = values
    return binding


def ways(case: str) -> dict[str, tuple[int | None, str]]:
    """What is compared, by name."""
    found: dict[str, tuple[int | None, str]] = {
        "Generator": (None, ""),
        "ONNX Runtime's own": (0, "spinning"),
        "1": (1, "asleep"),
    }
    threads = usable_cores()
    while threads > 1 and case != "bound to one core":
        found |= {f"{threads}, {wait}": (threads, wait) for wait in WAITS}
        threads //= 2
    return found


def alike(found: dict[str, np.ndarray]) -> None:
    """Every way makes the same images."""
    for name, images in found.items():
        np.testing.assert_array_equal(images, found["1"], err_msg=name)


def main(root: Path) -> None:
    result: dict[str, Any] = {"machine": described(), "cores": usable_cores(), "cases": {}}
    for case in CASES:
        for batch in BATCHES:
            arguments = {name: (case, threads, wait, root, batch) for name, (threads, wait) in ways(case).items()}
            rows = in_turns(build, arguments, alike)
            best = min(row["median_ms"] for row in rows.values())
            for name, row in rows.items():
                row["over_best"] = row["median_ms"] / best
                print(f"{case}, batch {batch}: {name:22} {row['median_ms']:8.3f} ms  {row['over_best']:.2f} x the best")
            result["cases"].setdefault(case, {})[str(batch)] = rows
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "examples" / "digits.bundle")

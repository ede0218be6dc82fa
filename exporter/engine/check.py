"""Built engines against torch's reference, where a GPU is there to run them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.engines import unfit
from fewstep.artifact.golden import Arrays
from fewstep.artifact.manifest import EngineEntry
from fewstep.exporter.parity import Parity, compare, left_out, plans_of, walk
from fewstep.system.machine import this_machine

__all__ = ["check_engines"]


def check_engines(bundle: Bundle) -> list[Parity]:
    """Run every engine on golden.npz and compare with torch's fp32 result there; those that cannot run here say why.

    Raises ValueError for an engine that is not what was saved, or without a reference.
    """
    machine, references, results = this_machine(), bundle.references(), []
    for name, entry in bundle.manifest.engines.items():
        graph = bundle.manifest.graphs[entry.graph]
        reason = unfit(bundle, entry, machine)
        for plan in plans_of(bundle, graph, references):
            golden = references[plan]
            profile = entry.key.profile(len(golden["noise"]))
            if reason or profile is None:
                missing = f"it has no profile for the batch of {len(golden['noise'])} in golden.npz"
                results.append(left_out(name, graph, plan, reason or missing))
            else:
                made = _run(bundle, entry, plan, golden, profile)
                results.append(compare(bundle, name, graph, plan, made, golden))
    return results


def _run(bundle: Bundle, entry: EngineEntry, plan: str, golden: Arrays, profile: int) -> Arrays:
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if entry.key.flavour == "tensorrt_rtx" else "0"
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    with ExitStack() as stack:
        runners = [
            stack.enter_context(TrtRunner(EngineFromBytes(bundle.file(path).read_bytes()), optimization_profile=profile))
            for path in entry.paths
        ]

        def run(runner: Any, output: str, arrays: Arrays) -> npt.NDArray[Any]:
            feeds = {name: np.ascontiguousarray(arrays[name]) for name in runner.get_input_metadata()}
            return np.array(runner.infer(feeds)[output])

        if len(runners) == 1:
            return {"sample": run(runners[0], "sample", golden)}
        step, postprocess = runners
        return walk(
            bundle,
            bundle.manifest.graphs[entry.graph],
            bundle.plan(plan),
            golden,
            lambda arrays: run(step, "denoised", arrays),
            lambda arrays: run(postprocess, "sample", arrays),
        )

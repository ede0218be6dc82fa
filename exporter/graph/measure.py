"""Is one batch of twice the size faster than two passes? Measured where the export runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir

from fewstep.artifact.signature import ArrayOutput, Axis, Column
from fewstep.backends.sessions import open_session
from fewstep.exporter.graph.evaluation import Network
from fewstep.exporter.graph.layouts import unroll
from fewstep.sampling.plan import Plan

__all__ = ["CLEARLY_FASTER", "doubled_speedup"]

CLEARLY_FASTER = 1.05  # less is noise, and two passes need half the memory
RUNS = 7


def doubled_speedup(network: Network, plan: Plan) -> float:
    """Latency of a guided row in two passes over its latency in one batch, for one image on this CPU.

    Args:
        network: traced, with its weights.
        plan: with a guided row at least; the first one is measured.
    """
    row = int(np.flatnonzero(plan.guidance != 1)[0])
    one = Plan(plan.alphas[row : row + 2], plan.sigmas[row : row + 2], [[1.0]], [[1.0]], [0.0], plan.guidance[row : row + 1])  # type: ignore[arg-type]
    channels, *axes = network.state  # of the state: a decoder would only add to both
    output = ArrayOutput(
        axes=tuple(Axis(name=f"axis{i}", size=size) for i, size in enumerate(axes)),
        columns=tuple(Column(name=str(i)) for i in range(channels)),
    )
    with tempfile.TemporaryDirectory() as directory:
        sessions = []
        for batched_guidance in (False, True):
            path = Path(directory, f"{batched_guidance}.onnx")
            ir.save(unroll(network, one, output, batched_guidance=batched_guidance), path)
            sessions.append(open_session(path, "of a guided row"))
        feeds = {
            i.name: np.zeros([1, *i.shape[1:]], np.int64 if "int64" in i.type else np.float32) for i in sessions[0].get_inputs()
        }
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(RUNS):  # interleaved, so that other load meets both
            for session, times in zip(sessions, seconds, strict=True):
                start = time.perf_counter()
                session.run(["sample"], feeds)
                times.append(time.perf_counter() - start)
    return median(seconds[0]) / median(seconds[1])

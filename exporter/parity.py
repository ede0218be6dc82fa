"""Do a bundle's graphs still give what torch gave? Needs numpy and ONNX Runtime only, so it also runs on the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from fewstep.bundle import Bundle

__all__ = ["Parity", "check_graphs"]


@dataclass(frozen=True)
class Parity:
    """A graph against its reference: largest and mean |difference| in image values, and whether it is within the limit."""

    graph: str
    max_error: float
    mean_error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.max_error <= self.limit  # false for NaN


def check_graphs(bundle: Bundle) -> list[Parity]:
    """Run every graph on golden.npz on the CPU and compare with torch's result there.

    Raises ValueError when the bundle has no graphs, or no reference for one.
    """
    if not bundle.manifest.graphs:
        raise ValueError(f"{bundle.root.name} has no graphs to check; write them with: fewstep export {bundle.root.name}")
    with np.load(bundle.file("golden.npz"), allow_pickle=False) as file:
        golden = dict(file)
    results = []
    for name, graph in bundle.manifest.graphs.items():
        if f"{graph.plan}/states" not in golden:
            raise ValueError(f"golden.npz has no reference for the plan {graph.plan!r}; export it again")
        session = ort.InferenceSession(bundle.file(graph.file), providers=["CPUExecutionProvider"])
        feeds = {i.name: golden[f"{graph.plan}/{i.name}"] for i in session.get_inputs()}
        (sample,) = session.run(["sample"], feeds)
        error = np.abs(sample - golden[f"{graph.plan}/states"][-1])
        results.append(Parity(name, float(error.max()), float(error.mean()), graph.limit))
    return results

"""Do a bundle's graphs still give what torch gave? Needs numpy and ONNX Runtime only, so it also runs on the target.

A straight graph is compared state by state: where it drifts off shows which row, or which precision, is to blame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from fewstep.bundle import Bundle
from fewstep.exporter.outputs import with_outputs
from fewstep.manifest import GraphEntry
from fewstep.plan import Plan, trajectory

__all__ = ["Parity", "check_graphs"]

Arrays = Mapping[str, npt.NDArray[Any]]
ORT_ERRORS = tuple(e for e in vars(ort_errors).values() if isinstance(e, type) and issubclass(e, Exception))
MAX_PSNR_DB = 200.0  # of an exact image


@dataclass(frozen=True)
class Parity:
    """A graph against its reference, in image values: largest and mean |difference| and PSNR of the samples, and its limits.

    drift: largest |difference| of the state after every row, relative to the largest state; of the last row alone for a Loop,
    whose states stay inside. skipped: why it could not be compared here, "" where it was.
    """

    graph: str
    plan: str
    max_error: float
    mean_error: float
    psnr_db: float
    drift: list[float]
    limit: float
    min_psnr_db: float
    skipped: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.skipped) or (self.max_error <= self.limit and self.psnr_db >= self.min_psnr_db)  # false for NaN


def check_graphs(bundle: Bundle) -> list[Parity]:
    """Run every graph on golden.npz on the CPU and compare with torch's fp32 result there, and its states on the way.

    A step graph is walked through every plan of its network that has a reference. Raises ValueError when the bundle has no
    graphs, no reference for one, or a file that is not a graph.
    """
    if not bundle.manifest.graphs:
        raise ValueError(f"{bundle.root.name} has no graphs to check; write them with: fewstep export {bundle.root.name}")
    with np.load(bundle.file("golden.npz"), allow_pickle=False) as file:
        golden = dict(file)
    plans = {key.split("/")[0] for key in golden if key.endswith("/sample")}
    results = []
    for name, graph in bundle.manifest.graphs.items():
        own = [graph.plan] if graph.plan else [p for p in plans if bundle.manifest.plans[p].network == graph.network]
        for plan in sorted(own):
            if plan not in plans:
                raise ValueError(f"golden.npz has no reference for the plan {plan!r}; export it again")
            reference = {key.split("/")[1]: value for key, value in golden.items() if key.startswith(f"{plan}/")}
            results.append(_check(bundle, name, graph, plan, reference))
    return results


def _check(bundle: Bundle, name: str, graph: GraphEntry, plan: str, golden: Arrays) -> Parity:
    span = bundle.manifest.image.high - bundle.manifest.image.low
    try:
        made = _walked(bundle, graph, bundle.plan(plan), golden) if graph.finish else _baked(bundle, graph, golden)
    except _NoKernelError as error:
        return Parity(name, plan, 0.0, 0.0, 0.0, [], graph.limit, graph.min_psnr_db, str(error))
    difference = np.abs(made["sample"] - golden["sample"])
    scale = max(1.0, float(np.abs(golden["sample"]).max()))  # random networks leave the range of images
    square = float((difference**2).mean())
    psnr = min(MAX_PSNR_DB, 10 * log10((span * scale) ** 2 / square)) if square > 0 else MAX_PSNR_DB
    drift = [float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))) for a, b in _states(made, golden)]
    return Parity(
        name,
        plan,
        float(difference.max()) / scale,
        float(difference.mean()) / scale,
        psnr if square == square else 0.0,
        drift,
        graph.limit,
        graph.min_psnr_db,
    )


class _NoKernelError(Exception):
    """This ONNX Runtime cannot compute the graph's precision."""


def _baked(bundle: Bundle, graph: GraphEntry, golden: Arrays) -> Arrays:
    """A whole-plan graph's sample, and its states where they are values of the graph."""
    rows = len(golden["states"]) if graph.layout == "unrolled" else 0
    names = [f"state_{k + 1}" for k in range(rows)]
    if graph.precision == "bf16":
        return _by_definition(bundle, graph, golden)
    session = _session(bundle, graph, with_outputs(bundle.file(graph.file).read_bytes(), names))
    outputs = ["sample", *names]
    return dict(zip(outputs, session.run(outputs, _feeds(session, golden)), strict=True))


def _walked(bundle: Bundle, graph: GraphEntry, plan: Plan, golden: Arrays) -> Arrays:
    """The states that a step graph leads to, and what its second graph makes of the last."""
    assert graph.finish is not None
    step = _session(bundle, graph, bundle.file(graph.file).read_bytes())
    finish = _session(bundle, graph, bundle.file(graph.finish).read_bytes())
    scales = bundle.manifest.networks[graph.network].parametrisation.scales
    given = dict(golden) | {
        f"null_{spec.name}": golden[spec.name] for spec in bundle.manifest.condition.inputs() if not plan.guided
    }

    def denoise(x: npt.NDArray[np.float32], sigma: float, weight: float = 1.0) -> npt.NDArray[np.float32]:
        row = {"x": x, "scales": np.array(scales(sigma), np.float32), "weight": np.array(weight, np.float32)}
        denoised: npt.NDArray[np.float32] = step.run(["denoised"], _feeds(step, given | row))[0]
        return denoised

    noise = golden["noise"]
    steps = trajectory(denoise, np.float32(plan.sigmas[0]) * noise[:, 0], plan, list(noise[:, 1:].swapaxes(0, 1)))
    states = {f"state_{s.row + 1}": s.x for s in steps}
    (sample,) = finish.run(["sample"], {"x": states[f"state_{plan.rows}"]})
    made: dict[str, npt.NDArray[Any]] = {**states, "sample": sample}
    return made


def _by_definition(bundle: Bundle, graph: GraphEntry, golden: Arrays) -> Arrays:
    """bf16 has no CPU kernels in ONNX Runtime: the evaluator that defines ONNX computes small graphs, where it is installed."""
    if graph.data or graph.layout != "unrolled":
        raise _NoKernelError("ONNX Runtime has no bf16 kernels for the CPU, and the graph is too large to compute without")
    try:
        from onnx.reference import ReferenceEvaluator
    except ImportError:
        raise _NoKernelError("ONNX Runtime has no bf16 kernels for the CPU; pip install onnx brings slow ones") from None
    evaluator = ReferenceEvaluator(str(bundle.file(graph.file)))
    feeds = {name: golden[name] for name in evaluator.input_names}
    results = evaluator.run(["sample"], feeds)
    assert isinstance(results, list)
    return {"sample": np.asarray(results[0])}


def _session(bundle: Bundle, graph: GraphEntry, model: bytes) -> ort.InferenceSession:
    for path in graph.paths:
        bundle.file(path)  # weights beside the graph are opened by ONNX Runtime itself
    options = ort.SessionOptions()
    options.log_severity_level = 3
    folder = str(Path(bundle.file(graph.file)).parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if graph.precision == "fp8":  # the optimiser puts fp8 where no kernel takes it
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise _NoKernelError(f"ONNX Runtime cannot compute {graph.precision} on this CPU") from None
        reason = str(error).split(" : ", 2)[-1]
        raise ValueError(f"ONNX Runtime cannot load {graph.file}: {reason}; export it again") from None


def _feeds(session: ort.InferenceSession, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {given.name: arrays[given.name] for given in session.get_inputs()}


def _states(made: Arrays, golden: Arrays) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Pairs of states, ours and torch's; the samples where ours are not to be had."""
    pairs = [(made[f"state_{k + 1}"], state) for k, state in enumerate(golden["states"]) if f"state_{k + 1}" in made]
    yield from pairs or [(made["sample"], golden["sample"])]

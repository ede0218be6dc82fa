"""Do a bundle's graphs still give what torch gave? Needs numpy and ONNX Runtime only, so it also runs on the target.

A straight graph is compared state by state: where it drifts off shows which row, or which precision, is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.artifact.golden import Arrays
from fewstep.artifact.inner_values import with_outputs
from fewstep.artifact.manifest import GraphEntry
from fewstep.backends.sessions import CPU, ERRORS, NoKernelError, open_session, reason_of
from fewstep.exporter.statements import (
    Stated,
    refuse_other_facts,
    refuse_other_origin,
    refuse_other_output,
    refuse_other_values,
)
from fewstep.sampling.plan import Plan, trajectory
from fewstep.system.readable import readable

__all__ = ["Parity", "check_graphs", "compare", "left_out", "plans_of", "walk"]

Run = Callable[[Arrays], npt.NDArray[Any]]
MAX_IMITATED_BYTES = 1 << 30  # of a graph in bf16; it is read whole, and a protobuf ends at 2 GB
MAX_PSNR_DB = 200.0  # of an exact image


@dataclass(frozen=True)
class Parity:
    """A graph against its reference.

    Differences are in image values; of arrays, relative to the largest number.

    Args:
        graph: name of the graph, or of the engine.
        plan: by name.
        max_error, mean_error: largest and mean |difference| of samples.
        psnr_db: of samples, at most MAX_PSNR_DB.
        drift: largest |difference| of the state after every row, relative to the largest state; of the last row alone for a
            Loop, whose states stay inside.
        limit: of max_error.
        min_psnr_db: of psnr_db.
        skipped: why it could not be compared here, "" where it was.
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


def check_graphs(bundle: Bundle, provider: str = CPU) -> list[Parity]:
    """Run every graph on golden.npz and compare with torch's fp32 result there, and its states on the way.

    A step graph is walked through every plan of its network that has a reference.

    Args:
        bundle: with graphs and references.
        provider: ONNX Runtime's, what to run on.

    Returns:
        One for each graph and plan.

    Raises:
        ValueError: when the bundle has no graphs, no reference for one, a file that is not a graph, or one that says something
            else than the manifest.
    """
    if not bundle.manifest.graphs:
        raise ValueError(f"{bundle.root.name} has no graphs to check; write them with: fewstep export {bundle.root.name}")
    references = bundle.references()
    return [
        _check(bundle, name, graph, plan, references[plan], provider)
        for name, graph in bundle.manifest.graphs.items()
        for plan in plans_of(bundle, graph, references)
    ]


def plans_of(bundle: Bundle, graph: GraphEntry, references: Mapping[str, Arrays]) -> list[str]:
    """The plans to check a graph with.

    Args:
        bundle: of the graph.
        graph: its entry.
        references: arrays by plan.

    Raises:
        ValueError: where there is no reference for the plan it holds, or could walk.
    """
    plans = bundle.manifest.plans
    able = [graph.plan] if graph.plan else [plan for plan, entry in plans.items() if entry.denoiser == graph.denoiser]
    if found := [plan for plan in able if plan in references]:
        return found
    raise ValueError(
        f"golden.npz has no reference for {f'the plan {graph.plan!r}' if graph.plan else f'a plan of {graph.denoiser!r}'}; "
        f"export it again with: fewstep export {bundle.root.name}"
    )


def compare(bundle: Bundle, name: str, graph: GraphEntry, plan: str, made: Arrays, golden: Arrays) -> Parity:
    """What was made of a plan's reference inputs against torch's sample, and state by state where there are states.

    Args:
        bundle: of the graph.
        name: of the graph or engine, for the result.
        graph: its entry, with the limits.
        plan: by name.
        made: sample (B, C, ...) and, where they are known, state_1 and so on.
        golden: the plan's references.

    Raises:
        ValueError: where these are not samples of the bundle.
    """
    output = bundle.manifest.output
    if not made["sample"].shape[1:] == golden["sample"].shape[1:] == output.shape:
        raise ValueError(
            f"the manifest says that samples are {output.shape}, the graph {name!r} makes {made['sample'].shape[1:]} "
            f"and golden.npz holds {golden['sample'].shape[1:]}; export the plan again"
        )
    difference = np.abs(made["sample"] - golden["sample"])
    scale = output.scale(golden["sample"])
    square = float((difference**2).mean())
    psnr = min(MAX_PSNR_DB, 10 * log10((output.span * scale) ** 2 / square)) if square > 0 else MAX_PSNR_DB
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


def left_out(name: str, graph: GraphEntry, plan: str, reason: str) -> Parity:
    """What cannot be compared here.

    Args:
        name: of the graph or engine, for the result.
        graph: its entry, with the limits.
        plan: by name.
        reason: in words.
    """
    return Parity(name, plan, 0.0, 0.0, 0.0, [], graph.limit, graph.min_psnr_db, reason)


def walk(bundle: Bundle, graph: GraphEntry, plan: Plan, golden: Arrays, step: Run, postprocess: Run) -> Arrays:
    """The states that a step graph or engine leads to, and what its second graph makes of the last.

    Args:
        bundle: of the graph.
        graph: its entry, of the step layout.
        plan: of its network.
        golden: the plan's references.
        step: from all inputs there are, by name, to denoised (B, C, ...).
        postprocess: from x, the last state, to sample.

    Returns:
        state_1 and so on, and sample.
    """
    manifest = bundle.manifest
    scales = manifest.denoisers[graph.denoiser].parametrisation.scales
    nulls = {each.null_tensor.name: golden[each.name] for each in manifest.signature.inputs if each.null_tensor}
    given = nulls | dict(golden)  # a graph takes what means "none" also where a plan is not guided, and reads none of it

    def denoise(
        x: npt.NDArray[np.float32], sigma: float, scale: float = 1.0, timestep: float | None = None
    ) -> npt.NDArray[np.float32]:
        numbers = np.array(scales(sigma).told(timestep), np.float32)
        row = {"x": x, "scales": numbers, "guidance_scale": np.array(scale, np.float32)}
        return step(given | row)

    noise = golden["noise"]
    steps = trajectory(denoise, plan.begin(noise[:, 0]), plan, list(noise[:, 1:].swapaxes(0, 1)))
    states = {f"state_{s.row + 1}": s.x for s in steps}
    return {**states, "sample": postprocess({"x": states[f"state_{plan.rows}"]})}


def _check(bundle: Bundle, name: str, graph: GraphEntry, plan: str, golden: Arrays, provider: str) -> Parity:
    try:
        stated = Stated.of(bundle.file(graph.file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{bundle.root.name}/{graph.file} {error}") from None
    refuse_other_facts(bundle, name, graph, stated)
    try:
        if graph.postprocess:
            made = _walked(bundle, name, graph, bundle.plan(plan), golden, provider)
        else:
            made = _baked(bundle, name, graph, golden, provider)
    except NoKernelError as error:
        result = left_out(name, graph, plan, str(error))
    else:
        result = compare(bundle, name, graph, plan, made, golden)
        refuse_other_output(name, bundle.manifest.output, made)
    refuse_other_origin(bundle, name, graph, stated)
    return result


def _baked(bundle: Bundle, name: str, graph: GraphEntry, golden: Arrays, provider: str) -> Arrays:
    """A whole-plan graph's output and sample, and its states where they are values of the graph."""
    rows = len(golden["states"]) if graph.layout == "unrolled" else 0
    states = [f"state_{k + 1}" for k in range(rows)]
    imitated = graph.precision == "bf16" and provider == CPU
    model = _without_bf16(bundle, graph) if imitated else bundle.file(graph.file).read_bytes()
    session = _session(bundle, graph, with_outputs(model, states), provider)
    outputs = [bundle.manifest.output.tensor.name, "sample", *states]
    made = dict(zip(outputs, _run(name, session, outputs, golden), strict=True))
    _check_values(bundle, name, session, golden, "sample")
    return made


def _walked(bundle: Bundle, name: str, graph: GraphEntry, plan: Plan, golden: Arrays, provider: str) -> Arrays:
    assert graph.postprocess is not None
    step = _session(bundle, graph, bundle.file(graph.file).read_bytes(), provider)
    postprocess = _session(bundle, graph, bundle.file(graph.postprocess).read_bytes(), provider)
    seen: dict[str, npt.NDArray[Any]] = {}
    tensor = bundle.manifest.output.tensor.name

    def evaluate(arrays: Arrays) -> npt.NDArray[Any]:
        seen.update(arrays)
        return _run(name, step, ["denoised"], arrays)[0]

    def end(arrays: Arrays) -> npt.NDArray[Any]:
        seen[tensor], sample = _run(name, postprocess, [tensor, "sample"], arrays)
        return sample

    made = walk(bundle, graph, plan, golden, evaluate, end)
    _check_values(bundle, name, step, seen, "denoised")
    return {**made, tensor: seen[tensor]}


def _check_values(bundle: Bundle, name: str, session: ort.InferenceSession, arrays: Arrays, output: str) -> None:
    if session.get_providers()[0] != CPU:
        return  # a GPU reads beyond a table without a word
    for each in bundle.manifest.signature.inputs:
        if each.values is not None:
            refuse_other_values(name, each.name, each.values, session, _feeds(name, session, arrays), output)


def _without_bf16(bundle: Bundle, graph: GraphEntry) -> bytes:
    """ONNX Runtime has no bf16 kernels for CPUs: the graph with the same rounding in fp32."""
    size = sum(bundle.manifest.files[path].bytes for path in graph.paths)
    if graph.layout != "unrolled" or size > MAX_IMITATED_BYTES:
        raise NoKernelError("ONNX Runtime has no bf16 kernels for the CPU, which only small straight graphs can do without")
    try:
        import onnx

        from fewstep.exporter.rounding import rounded_to_bf16
    except ImportError:
        raise NoKernelError("ONNX Runtime has no bf16 kernels for the CPU; with pip install onnx they are imitated") from None
    with readable(f"the graph {graph.file}", "export it again"):
        rounded: bytes = rounded_to_bf16(onnx.load(bundle.file(graph.file))).SerializeToString()
    return rounded


def _session(bundle: Bundle, graph: GraphEntry, model: bytes, provider: str) -> ort.InferenceSession:
    check_files(bundle, graph)  # weights beside the graph are opened by ONNX Runtime itself
    # The optimiser puts fp8 where no kernel takes it, and drops rounding to bf16 that is imitated.
    optimise = graph.precision != "fp8" and (graph.precision != "bf16" or provider != CPU)
    return open_session(model, repr(graph.file), provider=provider, folder=bundle.file(graph.file).parent, optimise=optimise)


def _run(name: str, session: ort.InferenceSession, outputs: Sequence[str], arrays: Arrays) -> list[npt.NDArray[Any]]:
    """Raises ValueError where the graph does not take these arrays or make these outputs."""
    feeds = _feeds(name, session, arrays)
    try:
        found: list[npt.NDArray[Any]] = session.run(list(outputs), feeds)
    except ERRORS as error:
        raise ValueError(f"the graph {name!r} does not run on golden.npz ({reason_of(error)}); export it again") from None
    return found


def _feeds(name: str, session: ort.InferenceSession, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    wanted = [given.name for given in session.get_inputs()]
    if unknown := [key for key in wanted if key not in arrays]:
        raise ValueError(f"the graph {name!r} takes {unknown[0]!r}, which no graph of this bundle does; export it again")
    return {key: arrays[key] for key in wanted}


def _states(made: Arrays, golden: Arrays) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Pairs of states, ours and torch's; the samples where ours are not to be had."""
    pairs = [(made[f"state_{k + 1}"], state) for k, state in enumerate(golden["states"]) if f"state_{k + 1}" in made]
    yield from pairs or [(made["sample"], golden["sample"])]

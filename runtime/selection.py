"""Where a plan runs on this machine: TensorRT, else ONNX Runtime with CUDA, else its CPU provider; and why there.

A backend is tried in earnest, by loading, and what speaks against it is kept in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.engines import unfit
from fewstep.artifact.external import check_files
from fewstep.artifact.manifest import EngineKey, GraphEntry
from fewstep.artifact.spec import Precision
from fewstep.backends.base import Program
from fewstep.backends.onnx import OnnxProgram
from fewstep.backends.sessions import CPU, CUDA, TENSORRT
from fewstep.runtime.fits import check_steps, check_whole
from fewstep.runtime.walker import Walker
from fewstep.system.extras import install
from fewstep.system.machine import this_machine

__all__ = ["BACKENDS", "ON_CPU", "ON_GPU", "PREFERRED", "Chosen", "Wanted", "candidates", "graphs_of", "select"]

PROVIDERS = {"cuda": CUDA, "onnxruntime-tensorrt": TENSORRT, "cpu": CPU}
# The first that is there is taken; eight bits are taken by name only. CPUs compute fp16 slowly.
ON_GPU: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
ON_CPU: tuple[Precision, ...] = ("fp32", "fp16")


class Wanted(NamedTuple):
    """What a user asked for; None leaves the choice to the selection. graph: one by name, for a plan it can make."""

    plan: str
    graph: str | None = None
    precision: Precision | None = None
    backend: str | None = None
    threads: int | None = None
    cuda_graphs: bool = True


@dataclass(frozen=True, eq=False)
class Chosen:
    """A program that loaded.

    Args:
        program: a graph or an engine; of the two of a step layout, what walks the plan.
        graph: by name.
        backend: a key of BACKENDS.
        precision: of the graph.
        engine: its name where one runs.
        reason: why here and not faster.
    """

    program: Program
    graph: str
    backend: str
    precision: Precision
    engine: str | None = None
    reason: str = ""


def select(bundle: Bundle, wanted: Wanted) -> Chosen:
    """The first backend that holds; the one that was asked for, or an error.

    Args:
        bundle: with graphs of the plan.
        wanted: what was asked for.

    Raises:
        ValueError: for a backend there is not or that does not hold, or where the plan has no graph to run.
    """
    graphs = candidates(bundle, wanted)
    if wanted.backend not in (None, *BACKENDS):
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, got {wanted.backend!r}")
    against: list[str] = []
    for backend in [wanted.backend] if wanted.backend else PREFERRED:
        try:
            chosen = BACKENDS[backend](bundle, wanted, graphs, backend)
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            if backend in (wanted.backend, PREFERRED[-1]):
                raise ValueError(f"backend {backend!r} cannot run {wanted.plan!r} here: {error}") from None
            against.append(f"not {backend}: {error}")
        else:
            return replace(
                chosen, reason="you asked for it" if wanted.backend else "; ".join(against) or "the fastest there is"
            )
    raise AssertionError("the last backend holds or raises")


def candidates(bundle: Bundle, wanted: Wanted) -> dict[Precision, str]:
    """The graphs to choose from, by precision.

    Args:
        bundle: with graphs of the plan.
        wanted: its plan, graph and precision.

    Raises:
        ValueError: where there is none.
    """
    graphs = graphs_of(bundle, wanted.plan)
    if wanted.graph is not None:
        entry: GraphEntry = bundle.pick("graph", wanted.graph, bundle.manifest.graphs)
        denoiser = bundle.manifest.plans[wanted.plan].denoiser
        if entry.plan not in (None, wanted.plan):
            raise ValueError(
                f"the graph {wanted.graph!r} holds the plan {entry.plan!r}, not {wanted.plan!r}; choose a graph of that plan"
            )
        if entry.denoiser != denoiser:
            raise ValueError(
                f"the plan {wanted.plan!r} belongs to the network {denoiser!r}, "
                f"the graph {wanted.graph!r} to {entry.denoiser!r}"
            )
        graphs = {entry.precision: wanted.graph}
    if not graphs or (wanted.precision and wanted.precision not in graphs):
        kind = f"{wanted.precision} graph" if wanted.precision else "graph"
        raise ValueError(
            f"{bundle.root.name} has no {kind} of the plan {wanted.plan!r} (it has: {', '.join(sorted(graphs)) or 'none'}); "
            f"write it with: fewstep export {bundle.root.name} --plan {wanted.plan}"
            + (f" --precision {wanted.precision}" if wanted.precision else "")
        )
    return graphs


def _engine(bundle: Bundle, wanted: Wanted, graphs: Mapping[Precision, str], backend: str) -> Chosen:
    """The plan's engine that can run here."""
    machine, against = this_machine(), []
    for precision in [wanted.precision] if wanted.precision else ON_GPU:
        for name, entry in bundle.manifest.engines.items():
            if entry.graph != graphs.get(precision):
                continue
            if reason := unfit(bundle, entry, machine):
                against.append(f"{name}: {reason}")
                continue
            from fewstep.backends.tensorrt import EngineProgram

            key = entry.key

            def load(path: str, name: str = name, key: EngineKey = key) -> Program:
                content = bundle.file(path).read_bytes()
                return EngineProgram(content, name, flavour=key.flavour, profiles=key.profiles)

            return Chosen(_program(bundle, wanted.plan, entry.graph, entry.paths, load), entry.graph, backend, precision, name)
    raise ValueError(f"{'; '.join(against) or 'no engine of this plan in the bundle'}")


def _graph(bundle: Bundle, wanted: Wanted, graphs: Mapping[Precision, str], backend: str) -> Chosen:
    """The plan's graph in ONNX Runtime."""
    provider = PROVIDERS[backend]
    if provider not in ort.get_available_providers():
        raise ValueError(f"this ONNX Runtime has no {provider}; one comes with the extra gpu, {install('gpu')}")
    found = [p for p in (ON_CPU if backend == "cpu" else ON_GPU) if p in graphs] or sorted(graphs)
    precision = wanted.precision or found[0]
    name = graphs[precision]
    entry = bundle.manifest.graphs[name]
    check_files(bundle, entry)  # ONNX Runtime opens weights beside the graph by itself

    def load(path: str) -> Program:
        # Control flow cannot be captured: a loop, and the If of a step that may go without guidance.
        capture = wanted.cuda_graphs and entry.layout == "unrolled"
        return OnnxProgram(bundle.file(path), repr(name), provider=provider, threads=wanted.threads, cuda_graphs=capture)

    paths = [path for path in (entry.file, entry.postprocess) if path]
    return Chosen(_program(bundle, wanted.plan, name, paths, load), name, backend, precision)


def _program(bundle: Bundle, plan: str, graph: str, paths: Sequence[str], load: Callable[[str], Program]) -> Program:
    """One program; of the two of a step layout, the one that walks the plan."""
    first, *rest = [load(path) for path in paths]
    manifest, table = bundle.manifest, bundle.plan(plan)
    if not rest:
        check_whole(repr(graph), first, manifest, table)
        return first
    check_steps(repr(graph), first, rest[0], manifest, table)
    scales = manifest.denoisers[manifest.graphs[graph].denoiser].parametrisation.scales
    return Walker(table, scales, first, rest[0], manifest.output.tensor.name)


def graphs_of(bundle: Bundle, plan: str) -> dict[Precision, str]:
    """Graphs that make a plan, by precision: its own, the straight one first, else the step graph of its network.

    Args:
        bundle: with the plan.
        plan: by name.
    """
    denoiser, found = bundle.manifest.plans[plan].denoiser, {}
    for layout in ("step", "loop", "unrolled"):
        for name, graph in bundle.manifest.graphs.items():
            if graph.layout == layout and (graph.plan == plan or (graph.plan is None and graph.denoiser == denoiser)):
                found[graph.precision] = name
    return found


# Fastest first. ONNX Runtime's TensorRT provider builds engines of its own for minutes at first use: by name only.
PREFERRED = ("tensorrt", "cuda", "cpu")
BACKENDS: dict[str, Callable[[Bundle, Wanted, Mapping[Precision, str], str], Chosen]] = {
    "tensorrt": _engine,
    "cuda": _graph,
    "onnxruntime-tensorrt": _graph,
    "cpu": _graph,
}

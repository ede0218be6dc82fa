"""Generator: a bundle's graph, ready to make images."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.bundle import Bundle
from fewstep.external import check_files
from fewstep.manifest import GraphEntry, Precision
from fewstep.runtime.noise import noise
from fewstep.runtime.walker import Walker
from fewstep.sessions import CPU, open_session

__all__ = ["Generator"]

# Fastest first; the first that this machine has is used.
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": CPU}


class Generator:
    """Makes images with one plan of a bundle. `backend` names where it runs, `reason` why there.

    An image depends on its own seed and label only, not on the batch it is made in (in fp16, kernels that round by batch
    size may move single pixels by one level). Calls are safe from many threads.
    """

    def __init__(self, bundle: Bundle, name: str, *, plan: str | None = None, backend: str | None = None) -> None:
        """name: a graph of the bundle. plan: for a graph of the step layout, which takes any. See `open`."""
        graph: GraphEntry = bundle.pick("graph", name, bundle.manifest.graphs)
        self.bundle = bundle
        self.graph = name
        self.image = bundle.manifest.image
        self.condition = bundle.manifest.condition
        self.plan = bundle.plan(_plan_of(bundle, name, graph, plan))
        self.backend, self.reason = _choose(backend)
        check_files(bundle, graph)  # ONNX Runtime opens weights beside the graph by itself
        session = _session(bundle.file(graph.file), name, self.backend)
        if PROVIDERS[self.backend] not in session.get_providers():
            self.backend, self.reason = "cpu", f"{self.reason}, but CUDA could not start; the CPU runs everything"
        self._walker: Walker | None = None
        if graph.finish:
            scales = bundle.manifest.networks[graph.network].parametrisation.scales
            self._walker = Walker(self.plan, scales, session, _session(bundle.file(graph.finish), name, self.backend))
        self._session = session

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        plan: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
    ) -> Generator:
        """Open a bundle: its default plan unless one is named; fp16 on a GPU and fp32 on a CPU unless precision says.

        Raises ValueError or FileNotFoundError when there is no such bundle, plan, graph or backend.
        """
        if precision not in (None, *get_args(Precision)):
            raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, got {precision!r}")
        bundle = Bundle.load(path)
        plan = plan or bundle.manifest.default
        if plan is None:
            raise ValueError(f"{path} has no default plan; name one of: {', '.join(sorted(bundle.manifest.plans))}")
        bundle.pick("plan", plan, bundle.manifest.plans)
        graphs = _graphs_of(bundle, plan)
        if not graphs or (precision and precision not in graphs):
            wanted = f"{precision} graph" if precision else "graph"
            raise ValueError(
                f"{path} has no {wanted} of the plan {plan!r} (it has: {', '.join(sorted(graphs)) or 'none'}); "
                f"write it with: fewstep export {path} --plan {plan}" + (f" --precision {precision}" if precision else "")
            )
        chosen, _ = _choose(backend)
        generator = cls(bundle, graphs[precision or _preferred(chosen, graphs)], plan=plan, backend=backend)
        if precision is None and generator.backend != chosen:  # it fell back to a backend that prefers another precision
            reason = generator.reason
            generator = cls(bundle, graphs[_preferred(generator.backend, graphs)], plan=plan, backend=generator.backend)
            generator.reason = reason
        return generator

    def __call__(
        self,
        labels: Sequence[int] | npt.NDArray[np.int64] | None = None,
        *,
        seeds: Sequence[int],
        embeddings: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Images uint8 (B, H, W, C), one per seed. labels (B,) for a bundle with classes; None draws without a class.

        embeddings: for a bundle conditioned on them, its tensors by name, (B, ...) float32; the names are in the errors.
        Raises ValueError for an empty batch, a label out of range, or conditions and seeds of unequal length.
        """
        if not isinstance(seeds, (Sequence, np.ndarray)) or isinstance(seeds, str):
            raise ValueError(f"seeds are a list of whole numbers, one per image, got {type(seeds).__name__}")
        if len(seeds) == 0:
            raise ValueError("a batch needs at least 1 image, got 0 seeds")
        condition = self._labels(labels, len(seeds)) | self._embeddings(embeddings or {}, len(seeds))
        drawn = noise(seeds, (self.plan.draws, *self.bundle.manifest.state_shape))
        if self._walker is not None:
            return self._walker.walk(drawn, condition)
        result: npt.NDArray[np.uint8] = self._session.run(["images"], {"noise": drawn} | condition)[0]
        return result

    def _embeddings(self, given: Mapping[str, npt.NDArray[np.float32]], batch: int) -> dict[str, npt.NDArray[np.generic]]:
        specs = self.condition.inputs() if self.condition.kind == "embeddings" else ()
        specs += self.condition.null_inputs() if self.plan.guided else ()
        wanted = {spec.name: (batch, *spec.shape) for spec in specs}
        if given.keys() != wanted.keys():
            raise ValueError(f"this bundle takes the embeddings {sorted(wanted) or 'none'}, got {sorted(given) or 'none'}")
        arrays = {name: np.asarray(value, np.float32) for name, value in given.items()}
        for name, shape in wanted.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {shape} for {batch} seeds, got {arrays[name].shape}")
        return dict(arrays)

    def _labels(self, labels: Sequence[int] | npt.NDArray[np.int64] | None, batch: int) -> dict[str, npt.NDArray[np.generic]]:
        classes = self.condition.classes
        if self.condition.kind != "labels":
            if labels is not None:
                raise ValueError("this bundle was trained without classes; leave labels out")
            return {}
        values = np.full(batch, classes) if labels is None else np.asarray(labels)
        if values.shape != (batch,) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"labels are whole numbers, one per seed ({batch}), got {values.dtype} of shape {values.shape}")
        if labels is not None and not ((values >= 0) & (values < classes)).all():
            wrong = values[(values < 0) | (values >= classes)][0]
            raise ValueError(f"a label of this bundle is 0 to {classes - 1}, got {wrong}")
        return {"labels": values.astype(np.int64)}


def _choose(backend: str | None) -> tuple[str, str]:
    """The backend to use and the reason in words."""
    here = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    if backend is None:
        reasons = {
            "cuda": "this ONNX Runtime has the CUDA provider",
            "cpu": "this ONNX Runtime has no CUDA provider (pip install 'fewstep[gpu]' brings one)",
        }
        return here[0], reasons[here[0]]
    if backend not in here:
        raise ValueError(f"backend {backend!r} is not available here; there is: {', '.join(here)}")
    return backend, "you asked for it"


def _preferred(backend: str, graphs: Collection[str]) -> str:
    """The precision to run on a backend, of those there are; eight bits and bf16 are taken by name only."""
    order = ("fp16", "fp32") if backend == "cuda" else ("fp32", "fp16")  # CPUs compute fp16 slowly
    found = next((p for p in order if p in graphs), None)
    return found or next(iter(sorted(graphs)))


def _graphs_of(bundle: Bundle, plan: str) -> dict[str, str]:
    """Graphs that make a plan, by precision: its own, the straight one first, else the step graph of its network."""
    network, found = bundle.manifest.plans[plan].network, {}
    for layout in ("step", "loop", "unrolled"):
        for name, graph in bundle.manifest.graphs.items():
            if graph.layout == layout and (graph.plan == plan or (graph.plan is None and graph.network == network)):
                found[str(graph.precision)] = name
    return found


def _plan_of(bundle: Bundle, name: str, graph: GraphEntry, plan: str | None) -> str:
    chosen = graph.plan or plan or ""
    if plan not in (None, chosen):
        raise ValueError(f"the graph {name!r} holds the plan {graph.plan!r}, not {plan!r}; choose a graph of that plan")
    entry = bundle.pick("plan", chosen, bundle.manifest.plans)
    if entry.network != graph.network:
        raise ValueError(
            f"the plan {chosen!r} belongs to the network {entry.network!r}, the graph {name!r} to {graph.network!r}"
        )
    return chosen


def _session(path: Path, name: str, backend: str) -> ort.InferenceSession:
    return open_session(path, repr(name), providers=list(dict.fromkeys([PROVIDERS[backend], CPU])))

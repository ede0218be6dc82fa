"""Generator: a bundle's graph, ready to make images."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.bundle import Bundle
from fewstep.manifest import GraphEntry, Precision
from fewstep.runtime.noise import noise

__all__ = ["Generator"]

# Fastest first; the first that this machine has is used.
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class Generator:
    """Makes images with one plan of a bundle. `backend` names where it runs, `reason` why there.

    An image depends on its own seed and label only, not on the batch it is made in (in fp16, kernels that round by batch
    size may move single pixels by one level). Calls are safe from many threads.
    """

    def __init__(self, bundle: Bundle, name: str, *, backend: str | None = None) -> None:
        """name: a graph of the bundle. backend: "cuda" or "cpu"; the best there is when None. See `open`."""
        graph: GraphEntry = bundle.pick("graph", name, bundle.manifest.graphs)
        self.bundle = bundle
        self.graph = name
        self.image = bundle.manifest.image
        self.condition = bundle.manifest.condition
        self.plan = bundle.plan(graph.plan)
        self.backend, self.reason = _choose(backend)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(bundle.file(graph.file), options, providers=_ladder(self.backend))
        if PROVIDERS[self.backend] not in self._session.get_providers():
            self.backend, self.reason = "cpu", f"{self.reason}, but CUDA could not start; the CPU runs everything"

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
            raise ValueError(f"precision is {' or '.join(get_args(Precision))}, got {precision!r}")
        bundle = Bundle.load(path)
        plan = plan or bundle.manifest.default
        if plan is None:
            raise ValueError(f"{path} has no default plan; name one of: {', '.join(sorted(bundle.manifest.plans))}")
        bundle.pick("plan", plan, bundle.manifest.plans)
        graphs: dict[str, str] = {g.precision: name for name, g in bundle.manifest.graphs.items() if g.plan == plan}
        if not graphs or (precision and precision not in graphs):
            wanted = f"{precision} graph" if precision else "graph"
            raise ValueError(
                f"{path} has no {wanted} of the plan {plan!r} (it has: {', '.join(sorted(graphs)) or 'none'}); "
                f"write it with: fewstep export {path} --plan {plan}"
            )
        chosen, _ = _choose(backend)
        generator = cls(bundle, graphs[precision or _preferred(chosen, graphs)], backend=backend)
        if precision is None and generator.backend != chosen:  # it fell back to a backend that prefers another precision
            reason = generator.reason
            generator = cls(bundle, graphs[_preferred(generator.backend, graphs)], backend=generator.backend)
            generator.reason = reason
        return generator

    def __call__(
        self, labels: Sequence[int] | npt.NDArray[np.int64] | None = None, *, seeds: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """Images uint8 (B, H, W, C), one per seed. labels (B,) for a bundle with classes; None draws without a class.

        Raises ValueError for an empty batch, a label out of range, or labels and seeds of unequal length.
        """
        if not isinstance(seeds, (Sequence, np.ndarray)) or isinstance(seeds, str):
            raise ValueError(f"seeds are a list of whole numbers, one per image, got {type(seeds).__name__}")
        if len(seeds) == 0:
            raise ValueError("a batch needs at least 1 image, got 0 seeds")
        feeds = {"noise": noise(seeds, (self.plan.draws, *self.image.shape))} | self._labels(labels, len(seeds))
        (images,) = self._session.run(["images"], feeds)
        result: npt.NDArray[np.uint8] = images
        return result

    def _labels(self, labels: Sequence[int] | npt.NDArray[np.int64] | None, batch: int) -> dict[str, npt.NDArray[np.int64]]:
        classes = self.condition.classes
        if self.condition.kind == "none":
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
    """The precision to run on a backend, of those there are: CPUs compute fp16 slowly."""
    return next(p for p in (("fp16", "fp32") if backend == "cuda" else ("fp32", "fp16")) if p in graphs)


def _ladder(backend: str) -> list[str]:
    return list(dict.fromkeys([PROVIDERS[backend], PROVIDERS["cpu"]]))

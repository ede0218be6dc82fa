"""Generator: a bundle's graph or engine, ready to make samples."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypedDict, Unpack, cast, get_args

import numpy as np
import numpy.typing as npt

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.spec import Precision
from fewstep.backends.base import Array, Binding
from fewstep.runtime.buckets import BUCKETS, Pool, parts
from fewstep.runtime.finite import NotFiniteError, where_it_ended
from fewstep.runtime.noise import checked_seeds, noise_into
from fewstep.runtime.selection import Wanted, select
from fewstep.runtime.walker import OnStep, Walk

__all__ = ["Generator", "Inputs"]

OnNan = Literal["raise", "fp32", "ignore"]


@dataclass(slots=True, eq=False)
class Inputs:
    """What a batch is made of.

    Args:
        seeds: one for each sample, B.
        tensors: of the signature by name, (B, ...).
    """

    seeds: Sequence[int]
    tensors: Mapping[str, Array]

    @staticmethod
    def joined(parts: Sequence[Inputs]) -> Inputs:
        """Several batches as one, in their order."""
        if len(parts) == 1:
            return parts[0]
        tensors = {name: np.concatenate([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return Inputs([seed for part in parts for seed in part.seeds], tensors)


class Choices(TypedDict, total=False):
    """The choices of Generator, see there."""

    plan: str | None
    graph: str | None
    precision: str | None
    backend: str | None
    threads: int | None
    buckets: Sequence[int]
    on_nan: OnNan
    cuda_graphs: bool


class Generator:
    """Makes samples with one plan of a bundle. `backend` names where it runs, `reason` why there and not faster.

    A sample depends on its own seed and inputs only, not on the batch it is made in (in fp16, kernels that round by batch
    size may move single pixels by one level). Calls are safe from many threads: weights are shared, buffers are not. On a GPU
    calls take turns.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        plan: str | None = None,
        graph: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        threads: int | None = None,
        buckets: Sequence[int] = BUCKETS,
        on_nan: OnNan = "raise",
        cuda_graphs: bool = True,
    ) -> None:
        """The bundle's default plan unless one is named, on the fastest backend that holds unless one is named.

        Args:
            bundle: with graphs of the plan.
            plan: by name.
            graph: one of the bundle by name.
            precision: fp16 on a GPU and fp32 on a CPU unless said.
            backend: tensorrt, cuda, onnxruntime-tensorrt or cpu.
            threads: of the CPU; unless said one for each core that may be used, until warm_up has measured.
            buckets: the batch sizes that warm_up prepares, where the engine takes them; a larger batch is made in parts.
            on_nan: where a sample is not finite, raise, make it again in fp32 (that graph is opened at once, too), or do not
                look (ignore).
            cuda_graphs: capture one for every bucket, on a GPU.

        Raises:
            ValueError: when there is no such plan, graph or backend.
        """
        if precision not in (None, *get_args(Precision)):
            raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, got {precision!r}")
        if not buckets or list(buckets) != sorted({int(b) for b in buckets}) or buckets[0] < 1:
            raise ValueError(f"buckets are batch sizes of 1 or more, increasing, got {list(buckets)}")
        if on_nan not in get_args(OnNan):
            raise ValueError(f"on_nan is {', '.join(get_args(OnNan))}, got {on_nan!r}")
        plan = _plan(bundle, plan, graph)
        chosen = select(bundle, Wanted(plan, graph, cast("Precision | None", precision), backend, threads, cuda_graphs))
        self.bundle, self.on_nan = bundle, on_nan
        self.buckets = tuple(size for size in buckets if chosen.program.takes(size))
        if not self.buckets:
            raise ValueError(
                f"{chosen.engine or chosen.graph} takes none of the batch sizes {list(buckets)}; build it for them"
            )
        self.signature = bundle.manifest.signature
        self.plan = bundle.plan(plan)
        self.graph, self.precision = chosen.graph, chosen.precision
        self.backend, self._why = chosen.backend, chosen.reason
        self.rescued = 0  # batches that were made again in fp32
        self._pool = Pool(chosen.program)
        # Opened now: when a number stops being finite, the bundle on disk may be another.
        rescue = on_nan == "fp32" and chosen.precision != "fp32"
        self._fp32 = Generator(bundle, plan=plan, precision="fp32", threads=threads, buckets=buckets) if rescue else None

    @classmethod
    def open(cls, path: str | os.PathLike[str], **choices: Unpack[Choices]) -> Generator:
        """Open a bundle directory.

        Args:
            path: of the bundle.
            choices: plan, graph, precision, backend, threads, buckets, on_nan and cuda_graphs, as the class takes them.

        Raises:
            FileNotFoundError: where there is no bundle.
            ValueError: where it cannot be trusted, or as the class does.
        """
        return cls(Bundle.load(path), **choices)

    def __call__(self, /, *, seeds: Sequence[int], on_step: OnStep | None = None, **inputs: Any) -> npt.NDArray[Any]:
        """What the bundle's signature gives, (B, ...), one per seed. See `generate_into`."""
        made = self.prepare(seeds=seeds, **inputs)
        out = self._empty(len(made.seeds))
        self._make(made, out, on_step)
        return out

    def generate_into(
        self, out: npt.NDArray[Any], /, *, seeds: Sequence[int], on_step: OnStep | None = None, **inputs: Any
    ) -> None:
        """Write samples into out: any array of the host that speaks DLPack, of the signature's output with a batch.

        Args:
            out: images uint8 (B, H, W, C), or values float32 (B, *axes, columns).
            seeds: one for each sample.
            on_step: in the step layout, sees every row and may stop by returning False; then CancelledError is raised.
            inputs: by the names of the signature, (B, ...); labels are names or numbers. What is left out means "none",
                where something does.

        Raises:
            ValueError: for an empty batch, inputs there are not, or of another kind or length, or an out of another shape or
                on a GPU.
            NotFiniteError: where a sample is not finite (see on_nan of the class).
            RunError: where the backend fails.
        """
        made = self.prepare(seeds=seeds, **inputs)
        tensor = self.signature.output.tensor
        shape = (len(made.seeds), *tensor.shape)
        if not isinstance(out, np.ndarray):
            try:
                out = np.from_dlpack(out)
            except (BufferError, RuntimeError, TypeError, AttributeError) as error:
                raise ValueError(f"out is an array in the host's memory that speaks DLPack ({error})") from None
        if out.shape != shape or out.dtype != np.dtype(tensor.dtype) or not out.flags.writeable:
            raise ValueError(f"out is a writable {tensor.dtype} array of shape {shape}, got {out.dtype} {out.shape}")
        self._make(made, out, on_step)

    def prepare(self, /, *, seeds: Sequence[int], **inputs: Any) -> Inputs:
        """Checked inputs of a batch.

        Args:
            seeds: one for each sample.
            inputs: by the names of the signature, (B, ...); None is left out.

        Raises:
            ValueError: as `generate_into` does.
        """
        seeds = checked_seeds(seeds)
        given = {name: value for name, value in inputs.items() if value is not None}
        return Inputs(seeds, self.signature.checked(given, len(seeds), guided=self.plan.guided))

    def make(self, inputs: Inputs) -> npt.NDArray[Any]:
        """What checked inputs become. Raises NotFiniteError as `generate_into` does."""
        out = self._empty(len(inputs.seeds))
        self._make(inputs, out, None)
        return out

    def _empty(self, batch: int) -> npt.NDArray[Any]:
        tensor = self.signature.output.tensor
        return np.empty((batch, *tensor.shape), np.dtype(tensor.dtype))

    def _make(self, inputs: Inputs, out: npt.NDArray[Any], on_step: OnStep | None) -> None:
        batch = len(inputs.seeds)
        for begin, end, bucket in parts(batch, self.buckets, exact=self._pool.program.exact):
            count = end - begin
            with self._pool.borrow(bucket) as binding:
                given = binding.inputs
                noise_into(given["noise"][:count], inputs.seeds[begin:end])
                for name, values in inputs.tensors.items():
                    given[name][:count] = values[begin:end]
                self._run(binding, count, on_step)
                out[begin:end] = binding.outputs[self.signature.output.tensor.name][:count]

    def example(self, batch: int) -> Inputs:
        """Inputs to measure with: seeds and labels that count up, arrays at random."""
        return self.prepare(seeds=range(batch), **self.signature.example(batch, guided=self.plan.guided))

    def warm_up(self) -> dict[int, float]:
        """Run every bucket, and measure how many threads are best for it; the seconds of each first call, by batch size."""
        seconds = self._run_all()
        if self._pool.program.prepare(seconds):
            self._pool = Pool(self._pool.program)
            self._run_all()
        return seconds

    def _run_all(self) -> dict[int, float]:
        seconds = {}
        for bucket in self.buckets:
            begin = time.perf_counter()
            with self._pool.borrow(bucket) as binding:
                binding.run()
            seconds[bucket] = time.perf_counter() - begin
        return seconds

    @property
    def reason(self) -> str:
        """Why this backend and not a faster one, and how many threads it runs with on a CPU."""
        return "; ".join(filter(None, (self._why, self._pool.program.about)))

    def _run(self, binding: Binding, count: int, on_step: OnStep | None) -> None:
        if on_step is None:
            binding.run()
        elif isinstance(binding, Walk):
            binding.run(on_step)
        else:
            raise ValueError(
                f"{self.graph} holds the whole plan in one graph; for previews export it with --layout step and open that "
                "graph by name, graph=..."
            )
        made = (array[:count] for array in binding.outputs.values() if array.dtype.kind == "f")
        if self.on_nan != "ignore" and not all(map(_finite, made)):
            self._rescue(binding, count)

    def _rescue(self, binding: Binding, count: int) -> None:
        """The batch once more in fp32, into the binding's output, where that was asked for."""
        if self._fp32 is None:
            entry = self.bundle.manifest.graphs[self.graph]
            inputs = {name: array[:count] for name, array in binding.inputs.items()}
            found = where_it_ended(self.bundle, entry, inputs)
            raise NotFiniteError(f"{self.graph} on {self.backend} made numbers that are not finite ({found})")
        again = self._fp32._pool
        bucket = count if again.program.exact else len(binding.inputs["noise"])
        with again.borrow(bucket) as other:
            for name, array in other.inputs.items():
                array[:count] = binding.inputs[name][:count]
            self._fp32._run(other, count, None)
            name = self.signature.output.tensor.name
            binding.outputs[name][:count] = other.outputs[name][:count]
        self.rescued += 1


def _finite(numbers: Array) -> bool:
    """Whether all are. Their sum needs no second array; where it is too large, each is looked at."""
    with np.errstate(over="ignore"):
        return isfinite(np.add.reduce(numbers, axis=None)) or bool(np.isfinite(numbers).all())


def _plan(bundle: Bundle, plan: str | None, graph: str | None) -> str:
    """The plan to make: the one named, else the graph's own, else the bundle's default. Raises ValueError for none."""
    if plan is None and graph is not None:
        plan = bundle.pick("graph", graph, bundle.manifest.graphs).plan
    name = plan or bundle.manifest.default
    if name is None:
        known = ", ".join(sorted(bundle.manifest.plans))
        raise ValueError(f"{bundle.root.name} has no default plan; name one of: {known or 'none, it has no plans'}")
    bundle.pick("plan", name, bundle.manifest.plans)
    return name

"""Evaluates a bundle's plans as they would run here: quality of what the runtime makes, latency, throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.artifact.bundle import Bundle
from fewstep.data import Labels, images_like
from fewstep.data.arrays import arrays_like, is_arrays
from fewstep.data.conditions import Conditions
from fewstep.data.inputs import Arrays, checked_arrays
from fewstep.evaluation.arrays import ArrayEvaluator, Metric
from fewstep.evaluation.cache import Cache, arrays_digest, default_folder
from fewstep.evaluation.comparison import FILE, Comparison, Evaluated, digest, read
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.evaluation.pixels import DEFINITION
from fewstep.runtime import Generator, bench
from fewstep.runtime.selection import graphs_of
from fewstep.system.machine import described
from fewstep.system.progress import Track, noted, silent, unsaid

__all__ = ["CompareConfig", "Evaluation", "compare", "evaluation_of", "make"]

BATCH = 100


@dataclass(frozen=True)
class CompareConfig:
    """How to evaluate.

    Args:
        data: as for fewstep train; its held-out samples are what samplers are evaluated against.
        features: of images, see feature_network; classifier unless given.
        seeds: sets of seeds, one sample per held-out one in each.
        thin: take every thin-th held-out sample.
        seconds: how long to time each batch size.
        mixed_precision: what a classifier is trained in.
        metrics: a user's own, of real and made values (n, *axes, columns), by name; for arrays.
    """

    data: str
    features: str | None = None
    seeds: int = 3
    thin: int = 1
    seconds: float = 1.0
    mixed_precision: str = "auto"
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.thin < 1:
            raise ValueError(
                f"a spread needs 2 or more sets of seeds, and every 1st sample or every so many, got {self.seeds}, {self.thin}"
            )


@dataclass(frozen=True)
class Evaluation:
    """What evaluates, and what outputs are made from.

    Args:
        evaluator: of outputs.
        real: scores of real training samples, what a perfect generator would get.
        numbers: of what outputs are made from, (n,): classes, or rows of `arrays`.
        arrays: by the names of inputs.
        asked: classes that count in scores, where there are some.
        features, trained_in: of images.
        notes: lines about the samples.
    """

    evaluator: Evaluator
    real: Callable[[], dict[str, float]]
    numbers: Labels
    arrays: Arrays | None
    asked: Labels | None = None
    features: str = "values"
    trained_in: str | None = None
    notes: tuple[str, ...] = ()


def evaluation_of(bundle: Bundle, config: CompareConfig, arrays: Arrays | None, *, track: Track = silent) -> Evaluation:
    """What evaluates the samplers of a bundle: held-out images in features, or arrays by themselves.

    Args:
        bundle: whose samplers are evaluated.
        config: with the data and the features.
        arrays: what samples are made from, by the names of inputs, (N, ...); None where the data or labels say it.
        track: shows progress.

    Raises:
        ValueError: for data of another kind than the bundle makes, arrays that do not fit, or settings that are of the other
            kind.
    """
    if is_arrays(Path(config.data)):
        return _by_arrays(bundle, config, arrays)
    bundle.manifest.output.as_image("evaluating by real images")
    if config.metrics:
        raise ValueError("own metrics are of arrays; leave them out for images")
    arrays = checked_arrays(bundle.manifest.signature.inputs, arrays) or None
    train = images_like(bundle, config.data, track=track)
    held_out = images_like(bundle, config.data, "held-out").every(config.thin)
    track, features = noted(track, held_out.notes, unsaid), config.features or "classifier"
    evaluator = ImageEvaluator(feature_network(features, train, precision=config.mixed_precision, track=track), held_out)
    count = Conditions(bundle.manifest.signature.inputs, arrays).count
    numbers = np.arange(evaluator.n) % count if arrays else evaluator.labels
    asked = evaluator.labels if bundle.manifest.signature.labels and not arrays else None
    real = lambda: evaluator.floor(train, seed=0).numbers()  # noqa: E731
    return Evaluation(evaluator, real, numbers, arrays, asked, features, evaluator.model.trained_in, held_out.notes)


def _by_arrays(bundle: Bundle, config: CompareConfig, arrays: Arrays | None) -> Evaluation:
    """Held-out rows, from what each of them was made from."""
    if config.features:
        raise ValueError("arrays are evaluated by their own numbers; leave --features out")
    train, held_out = arrays_like(bundle, config.data), arrays_like(bundle, config.data, "held-out")
    if arrays and train.arrays:
        raise ValueError(f"{config.data} has what its samples are made from; leave --inputs out")
    held_out = held_out.every(config.thin)
    evaluator = ArrayEvaluator(held_out, config.metrics)

    def real() -> dict[str, float]:
        picked = np.random.default_rng(0).choice(len(train), evaluator.n, replace=len(train) < evaluator.n)
        return ArrayEvaluator(train.at(picked), config.metrics).scores_of(held_out)

    return Evaluation(evaluator, real, held_out.labels, held_out.arrays or arrays or None, notes=held_out.notes)


def compare(
    bundle: Bundle,
    config: CompareConfig,
    plans: Sequence[str] = (),
    *,
    arrays: Arrays | None = None,
    note: Callable[[str], None] = unsaid,
    track: Track = silent,
) -> Comparison:
    """Evaluate plans that have a graph (all of them unless some are named) and keep the comparison in the bundle.

    What a graph came to on this machine is cached, so a stopped comparison goes on, and one more plan costs one plan: where
    some are named, those that were evaluated alike before stay. The reference of pairs is the plan with the most network calls,
    or that of the comparison which is added to.

    Args:
        bundle: with graphs; it keeps the comparison.
        config: of the evaluation.
        plans: by name.
        arrays: what samples are made from, by the names of inputs, row by row in turn.
        note: called with lines about the samples.
        track: shows progress.

    Raises:
        ValueError: where no plan has a graph, arrays are missing, or the samples are not of the bundle's kind.
    """
    names = list(plans) or [name for name in bundle.manifest.plans if graphs_of(bundle, name)]
    if not names:
        raise ValueError(f"no plan of {bundle.root.name} has a graph to evaluate; write some with: fewstep export")
    names.sort(key=lambda name: -bundle.plan(name).nfe)
    by = evaluation_of(bundle, config, arrays, track=track)
    for line in by.notes:
        note(line)
    inputs_sha256 = arrays_digest(by.arrays) if by.arrays else None
    before = _before(bundle, config, by, inputs_sha256) if plans else None
    work = _Work(bundle, config, by, before.reference if before else names[0], inputs_sha256, track)
    evaluated = dict(before.plans) if before else {}
    evaluated |= {name: work.evaluated(name) for name in names}
    result = Comparison(
        data=config.data,
        features=by.features,
        metric=by.evaluator.metric,
        images=by.evaluator.n,
        seeds=config.seeds,
        thin=config.thin,
        reference=work.first,
        trained_in=by.trained_in,
        inputs_sha256=inputs_sha256,
        machine=described(),
        real=by.real(),
        plans=dict(sorted(evaluated.items(), key=lambda item: -item[1].nfe)),
    )
    with bundle.edit() as draft:
        draft.new(FILE).write_text(result.model_dump_json(indent=1) + "\n", "utf-8")
    return result


class _Work:
    """One comparison: generators, and what each plan came to."""

    def __init__(
        self, bundle: Bundle, config: CompareConfig, by: Evaluation, first: str, inputs_sha256: str | None, track: Track
    ) -> None:
        self.bundle, self.config, self.by, self.first, self.track = bundle, config, by, first, track
        self.generator = cache(lambda name: Generator(bundle, plan=name))
        self.reference = cache(lambda seed: self._made(self.generator(first), seed))
        settings = {key: value for key, value in asdict(config).items() if key != "metrics"} | {
            "metrics": sorted(config.metrics),
            "pixels": DEFINITION,
            "machine": described() | {"date": None},
            "reference_sha256": digest(bundle.manifest, first, self.generator(first).graph),
        }
        self.settings = settings | {"evaluator_sha256": by.evaluator.digest(), "inputs_sha256": inputs_sha256}

    def evaluated(self, name: str) -> Evaluated:
        """What a plan comes to, from the cache where it was measured before; a user's own metrics are measured anew."""
        generator = self.generator(name)
        sha256 = digest(self.bundle.manifest, name, generator.graph)
        about: dict[str, Any] = {"graph": generator.graph, "sha256": sha256, "backend": generator.backend}
        kept = Cache(default_folder(), "evaluated", self.settings | about)
        if self.config.metrics or (measured := kept.read()) is None:
            measured = {"scores": self._scores(generator)} | _timed(generator, self.config.seconds, self.track)
            kept.write(measured)
        about |= {"precision": generator.precision, "nfe": generator.plan.nfe, "metric": self.by.evaluator.metric}
        return Evaluated.model_validate(about | measured)

    def _scores(self, generator: Generator) -> dict[str, dict[str, float]]:
        scores: dict[str, list[float]] = {}
        for seed in range(self.config.seeds):
            outputs = self._made(generator, seed)
            found = self.by.evaluator.scores(outputs, self.by.asked) | self.by.evaluator.pair(outputs, self.reference(seed))
            for key, value in found.items():
                scores.setdefault(key, []).append(value)
        return {key: {"mean": mean(values), "std": stdev(values)} for key, values in scores.items()}

    def _made(self, generator: Generator, seed: int) -> npt.NDArray[Any]:
        return make(generator, self.by.numbers, seed * self.by.evaluator.n, self.by.arrays, track=self.track)


def _before(bundle: Bundle, config: CompareConfig, by: Evaluation, inputs_sha256: str | None) -> Comparison | None:
    """The comparison in the bundle, where it was made alike on this machine and its reference is as it was."""
    try:
        found = read(bundle)
    except ValueError:  # there is none, or none that holds
        return None
    here = described() | {"date": None}
    if (found.trained_in, found.inputs_sha256) != (by.trained_in, inputs_sha256):
        return None
    alike = (found.data, found.features, found.seeds, found.thin) == (config.data, by.features, config.seeds, config.thin)
    return found if alike and found.machine | {"date": None} == here and found.reference in found.plans else None


def make(
    generator: Generator,
    numbers: Labels,
    first: int,
    arrays: Arrays | None = None,
    *,
    track: Track = silent,
) -> npt.NDArray[Any]:
    """Outputs with channels first, (n, C, ...), of the seeds first .. first + n - 1.

    Args:
        generator: of a plan.
        numbers: what each is made from, (n,): a class, or a row of arrays.
        first: the first seed.
        arrays: by the names of inputs, (N, ...).
        track: shows progress.
    """
    conditions = Conditions(generator.signature.inputs, arrays)
    starts, chunks = range(0, len(numbers), BATCH), []
    for i in track(range(len(starts)), f"make {generator.graph}"):
        some = numbers[starts[i] : starts[i] + BATCH]
        seeds = range(first + starts[i], first + starts[i] + len(some))
        chunks.append(generator(seeds=seeds, **_tensors(generator, conditions, some)))
    return np.ascontiguousarray(np.moveaxis(np.concatenate(chunks), -1, 1))


def _tensors(generator: Generator, conditions: Conditions, numbers: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What a generator takes of conditions that are numbered (B,), by name."""
    given = conditions.of(torch.from_numpy(numbers))
    found: dict[str, Any] = {each.name: value.numpy() for each, value in zip(conditions.inputs, given, strict=True)}
    if generator.plan.guided:
        nulls = zip(conditions.inputs, conditions.null(given), strict=True)
        found |= {each.null_tensor.name: value.numpy() for each, value in nulls if each.null_tensor}
    return found


def _timed(generator: Generator, seconds: float, track: Track) -> dict[str, Any]:
    rows = bench.measure(generator, seconds=seconds, track=track)
    best = max(row["samples_per_second"] for row in rows)
    return {"p50_ms": rows[0]["p50_ms"], "p99_ms": rows[0]["p99_ms"], "samples_per_second": best}

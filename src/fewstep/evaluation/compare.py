"""Judges a bundle's plans as they would run here: quality of what the runtime makes, latency, throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.artifact.bundle import Bundle
from fewstep.data import images_like
from fewstep.data.conditions import Conditions
from fewstep.data.inputs import Arrays, checked_arrays
from fewstep.evaluation.cache import Cache, arrays_digest, default_folder
from fewstep.evaluation.comparison import FILE, Comparison, Judged, digest, read
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import Judge
from fewstep.evaluation.pixels import DEFINITION
from fewstep.runtime import Generator, bench
from fewstep.runtime.selection import graphs_of
from fewstep.system.machine import described
from fewstep.system.progress import Track, noted, silent, unsaid

__all__ = ["CompareConfig", "compare", "make"]

BATCH = 100


@dataclass(frozen=True)
class CompareConfig:
    """How to judge. data: as for open_images; its held-out images are what samplers are judged against.

    features: see feature_network. seeds: sets of seeds, one image per held-out one in each. thin: take every thin-th
    held-out image. seconds: how long to time each batch size. precision: what a classifier is trained in.
    """

    data: str
    features: str = "classifier"
    seeds: int = 3
    thin: int = 1
    seconds: float = 1.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.thin < 1:
            raise ValueError(
                f"a spread needs 2 or more sets of seeds, and every 1st image or every so many, got {self.seeds}, {self.thin}"
            )


def compare(
    bundle: Bundle,
    config: CompareConfig,
    plans: Sequence[str] = (),
    *,
    arrays: Arrays | None = None,
    note: Callable[[str], None] = unsaid,
    track: Track = silent,
) -> Comparison:
    """Judge plans that have a graph (all of them unless some are named) and keep the comparison in the bundle.

    What a graph came to on this machine is cached, so a stopped comparison goes on, and one more plan costs one plan: where
    some are named, those that were judged alike before stay. The reference of pairs is the plan with the most network calls, or
    that of the comparison which is added to. arrays: what samples are made from, by the names of inputs, row by row in turn.
    note: called with lines about the images.

    Raises ValueError where no plan has a graph, arrays are missing, or the images are not of the bundle's kind.
    """
    bundle.manifest.output.as_image("judging by real images")
    arrays = checked_arrays(bundle.manifest.signature.inputs, arrays)
    names = list(plans) or [name for name in bundle.manifest.plans if graphs_of(bundle, name)]
    if not names:
        raise ValueError(f"no plan of {bundle.root.name} has a graph to judge; write some with: fewstep export")
    names.sort(key=lambda name: -bundle.plan(name).nfe)
    train = images_like(bundle, config.data, track=track)
    held_out = images_like(bundle, config.data, "held-out").every(config.thin)
    track = noted(track, held_out.notes, note)
    judge = Judge(feature_network(config.features, train, precision=config.precision, track=track), held_out)
    inputs_sha256 = arrays_digest(arrays) if arrays else None
    before = _before(bundle, config, judge, inputs_sha256) if plans else None
    first = before.reference if before else names[0]
    generators = {name: Generator(bundle, plan=name) for name in dict.fromkeys((*names, first))}
    digests = {name: digest(bundle.manifest, name, generator.graph) for name, generator in generators.items()}
    settings = asdict(config) | {
        "pixels": DEFINITION,
        "machine": described() | {"date": None},
        "reference_sha256": digests[first],
    }
    settings |= {"judge_sha256": judge.digest(), "inputs_sha256": inputs_sha256}

    @cache
    def reference(seed: int) -> npt.NDArray[np.uint8]:
        return make(generators[first], judge.labels, seed * judge.n, arrays, track=track)

    asked = judge.labels if bundle.manifest.signature.labels and not arrays else None
    judged = dict(before.plans) if before else {}
    for name in names:
        generator = generators[name]
        about: dict[str, Any] = {"graph": generator.graph, "sha256": digests[name], "backend": generator.backend}
        kept = Cache(default_folder(), "judged", settings | about)
        if (measured := kept.read()) is None:
            scores: dict[str, list[float]] = {}
            for seed in range(config.seeds):
                images = make(generator, judge.labels, seed * judge.n, arrays, track=track)
                found = judge.score(images, asked).numbers() | asdict(judge.pair(images, reference(seed)))
                for key, value in found.items():
                    scores.setdefault(key, []).append(value)
            measured = {"scores": {key: {"mean": mean(values), "std": stdev(values)} for key, values in scores.items()}}
            kept.write(measured := measured | _timed(generator, config.seconds, track))
        about |= {"precision": generator.precision, "nfe": generator.plan.nfe}
        judged[name] = Judged.model_validate(about | measured)
    result = Comparison(
        data=config.data,
        features=config.features,
        images=judge.n,
        seeds=config.seeds,
        thin=config.thin,
        reference=first,
        trained_in=judge.model.trained_in,
        inputs_sha256=inputs_sha256,
        machine=described(),
        real=judge.floor(train, seed=0).numbers(),
        plans=dict(sorted(judged.items(), key=lambda item: -item[1].nfe)),
    )
    with bundle.edit() as draft:
        draft.new(FILE).write_text(result.model_dump_json(indent=1) + "\n", "utf-8")
    return result


def _before(bundle: Bundle, config: CompareConfig, judge: Judge, inputs_sha256: str | None) -> Comparison | None:
    """The comparison in the bundle, where it was made alike on this machine and its reference is as it was."""
    try:
        found = read(bundle)
    except ValueError:  # there is none, or none that holds
        return None
    here = described() | {"date": None}
    if (found.trained_in, found.inputs_sha256) != (judge.model.trained_in, inputs_sha256):
        return None
    alike = (found.data, found.features, found.seeds, found.thin) == (config.data, config.features, config.seeds, config.thin)
    return found if alike and found.machine | {"date": None} == here and found.reference in found.plans else None


def make(
    generator: Generator,
    labels: npt.NDArray[np.int64],
    first: int,
    arrays: Arrays | None = None,
    *,
    track: Track = silent,
) -> npt.NDArray[np.uint8]:
    """Images (n, C, H, W) uint8 of the seeds first .. first + n - 1, for n labels or, with arrays, for their rows."""
    conditions = Conditions(generator.signature.inputs, arrays)
    numbers = np.arange(len(labels)) % conditions.count if arrays else labels
    starts, chunks = range(0, len(labels), BATCH), []
    for i in track(range(len(starts)), f"make {generator.graph}"):
        some = numbers[starts[i] : starts[i] + BATCH]
        seeds = range(first + starts[i], first + starts[i] + len(some))
        chunks.append(generator(seeds=seeds, **_tensors(generator, conditions, some)))
    return np.ascontiguousarray(np.concatenate(chunks).transpose(0, 3, 1, 2))


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
    best = max(row["images_per_second"] for row in rows)
    return {"p50_ms": rows[0]["p50_ms"], "p99_ms": rows[0]["p99_ms"], "images_per_second": best}

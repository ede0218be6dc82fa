"""Samplers of a bundle, evaluated side by side, and the one to ship: data and the rule, no measuring."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from operator import itemgetter
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import Manifest
from fewstep.artifact.spec import Precision
from fewstep.system.strict import Strict

__all__ = [
    "FARTHEST",
    "FILE",
    "NAMED",
    "Candidate",
    "Comparison",
    "Evaluated",
    "Limits",
    "Spread",
    "decimals",
    "digest",
    "farthest",
    "pick",
    "read",
]

FILE = "comparison.json"
NAMED = {"frechet": "Frechet distance", "energy": "energy distance"}
PIXELS = "pixels."  # before the names of their statistics, among scores
FEW = 200  # images, to estimate the covariance of 64 features from
POOR = 0.7  # accuracy: of a classifier that has not learnt what it looks at
FARTHEST = 1.5  # deviations of real images; samplers of digits that look right stay below 1


def decimals(distance: float) -> int:
    """How many say something: large distances spread by more than one."""
    return 2 if distance < 100 else 0


class Spread(Strict):
    """Over sets of seeds: mean and standard deviation."""

    mean: float
    std: float = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.mean:.{decimals(self.mean)}f} ± {self.std:.{decimals(self.mean)}f}"


def farthest(scores: Mapping[str, float]) -> tuple[str, float] | None:
    """Of scores, the statistic of pixels that is farthest from real images', in deviations of those: its name, how far.

    None where there are none, as of arrays.

    See fewstep.evaluation.pixels.
    """
    found = {name.removeprefix(PIXELS): value for name, value in scores.items() if name.startswith(PIXELS)}
    return max(found.items(), key=itemgetter(1), default=None)


class Evaluated(Strict):
    """One plan as it ran here. sha256: of what it was then, see `digest`.

    scores: the numbers of fewstep.evaluation.metrics.Score, and how far samples are from the reference plan's of equal noise.
    """

    graph: str
    sha256: str
    backend: str
    precision: Precision
    nfe: PositiveInt
    scores: dict[str, Spread]
    metric: Literal["frechet", "energy"] = Field("frechet", description="the score that decides: of images, of arrays")
    p50_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)
    samples_per_second: float = Field(gt=0, description="at the batch size where it is highest")

    @model_validator(mode="after")
    def _has_a_distance(self) -> Evaluated:
        if self.metric not in self.scores:
            raise ValueError(f"a plan is evaluated by its {self.metric} distance, which is missing")
        if self.metric == "frechet" and not any(name.startswith(PIXELS) for name in self.scores):
            raise ValueError("a plan is evaluated by its Frechet distance and its pixels, of which one is missing")
        return self

    @property
    def distance(self) -> Spread:
        """The score that decides."""
        return self.scores[self.metric]

    @property
    def farthest(self) -> tuple[str, float] | None:
        """What its pixels are farthest off in, and how far; None for arrays."""
        return farthest({name: score.mean for name, score in self.scores.items()})


class Comparison(Strict):
    """comparison.json of a bundle. images: evaluated in each set of seeds, against as many held-out ones of `data`."""

    data: str
    features: str
    metric: Literal["frechet", "energy"] = "frechet"
    images: PositiveInt
    seeds: PositiveInt
    thin: PositiveInt
    reference: str
    trained_in: str | None = Field(
        None, description="precision that the network whose features evaluate was trained in, if here"
    )
    inputs_sha256: str | None = Field(None, description="of the arrays that samples were made from, if any")
    machine: dict[str, Any]
    real: dict[str, float] = Field(description="scores of real training images: what a perfect generator would get")
    plans: dict[str, Evaluated] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_what_is_shown(self) -> Comparison:
        wanted = {"frechet", "recall"} if self.metric == "frechet" else {self.metric}
        if missing := wanted - self.real.keys():
            raise ValueError(f"the scores of real samples lack {', '.join(sorted(missing))}")
        if self.metric == "frechet" and not any(name.startswith(PIXELS) for name in self.real):
            raise ValueError("the scores of real images lack those of pixels")
        return self

    def doubts(self) -> list[str]:
        """Why these distances may mean little, in sentences."""
        found = []
        if self.images < FEW and self.metric == "frechet":
            found.append(f"{self.images} images a set are few; below {FEW}, a Frechet distance says little: give more images")
        if (accuracy := self.real.get("accuracy", 1.0)) < POOR:
            found.append(
                f"the network that evaluates knows the class of {accuracy:.0%} of the real images, so its features say little: "
                "give more images, or other --features"
            )
        return found

    @property
    def evaluator(self) -> tuple[str | int | None, ...]:
        """Two comparisons with the same compare with each other."""
        return self.data, self.features, self.images, self.trained_in, self.inputs_sha256


@dataclass(frozen=True)
class Limits:
    """What a sampler must hold; None is no limit.

    A good distance must not have been bought with brightness, so there always is a limit on pixels, and it is not enough alone.

    Args:
        distance: at most.
        accuracy: at least, a share of 1.
        ms: p50 of one sample, at most.
        calls: of the network for one sample, at most.
        pixels: how far its farthest statistic of pixels may be from real images', in deviations of those.

    Raises:
        ValueError: for no limit beside that on pixels, one that is not above 0, or an accuracy above 1.
    """

    distance: float | None = None
    accuracy: float | None = None
    ms: float | None = None
    calls: int | None = None
    pixels: float = FARTHEST

    def __post_init__(self) -> None:
        given = [getattr(self, field.name) for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) == 1:
            raise ValueError("a choice needs a limit: a distance, a class accuracy, milliseconds or network calls")
        if wrong := [value for value in given if not 0 < value < inf]:
            raise ValueError(f"a limit is a number above 0, got {wrong[0]}")
        if self.accuracy is not None and self.accuracy > 1:
            raise ValueError(f"a class accuracy is at most 1, got {self.accuracy}")

    def broken(self, evaluated: Evaluated) -> dict[str, float]:
        """The limits that a sampler does not hold, in words, and how many times it is beyond each.

        Quality counts with its spread against it.
        """
        scores, (statistic, far) = evaluated.scores, evaluated.farthest or ("", 0.0)
        found = [
            (f"{NAMED[evaluated.metric]} with its spread", evaluated.distance.mean + evaluated.distance.std, self.distance),
            ("p50 ms", evaluated.p50_ms, self.ms),
            ("network calls", evaluated.nfe, self.calls),
            (f"pixels off in {statistic} by", far, self.pixels),
        ]
        words = {
            f"{name} {value:.4g} over {limit:g}": value / limit
            for name, value, limit in found
            if limit is not None and value > limit
        }
        if self.accuracy is not None:
            if "accuracy" not in scores:
                raise ValueError("the features that evaluated know no classes; leave out the limit on accuracy")
            worst = scores["accuracy"].mean - scores["accuracy"].std
            if worst < self.accuracy:
                words[f"class accuracy less its spread {worst:.3f} under {self.accuracy:g}"] = self.accuracy / max(worst, 1e-9)
        return words


@dataclass(frozen=True)
class Candidate:
    """A plan of a bundle and what was measured of it.

    Args:
        bundle: that has the plan.
        plan: by name.
        evaluated: of the plan's graph.
    """

    bundle: Bundle
    plan: str
    evaluated: Evaluated


def pick(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """The candidate to ship: of those that hold all limits, the fastest where quality was limited, else the best.

    Where quality was not limited, a candidate within the spread of the best counts as good, and the fastest of those is taken.

    Args:
        candidates: one or more, evaluated alike.
        limits: to hold.

    Raises:
        ValueError: where none holds, with how far the nearest one is; or for a limit on accuracy where none was measured.
    """
    held = [c for c in candidates if not limits.broken(c.evaluated)]
    if not held:
        nearest = min(candidates, key=lambda c: max(limits.broken(c.evaluated).values()))
        raise ValueError(
            f"none of {len(candidates)} samplers holds the limits; nearest is {nearest.plan} "
            f"({', '.join(limits.broken(nearest.evaluated))}); loosen a limit, or calibrate or distil another sampler"
        )
    if limits.distance is None and limits.accuracy is None:
        best = min((c.evaluated.distance for c in held), key=lambda f: f.mean)
        held = [c for c in held if c.evaluated.distance.mean - best.mean <= (c.evaluated.distance.std**2 + best.std**2) ** 0.5]
    return min(held, key=lambda c: (c.evaluated.p50_ms, c.evaluated.distance.mean))


def digest(manifest: Manifest, plan: str, graph: str) -> str:
    """One hash for a plan's numbers and the graph that makes it.

    Args:
        manifest: with the hashes of its files.
        plan: by name.
        graph: by name.
    """
    files = [manifest.files[path].sha256 for path in manifest.graphs[graph].paths]
    return hashlib.sha256(json.dumps([manifest.plans[plan].model_dump(exclude={"solver"}), files]).encode()).hexdigest()


def read(bundle: Bundle) -> Comparison:
    """The comparison in a bundle. Raises ValueError where there is none, or no plan of it is as it was evaluated."""
    again = f"run: fewstep compare {bundle.root.name} --data ..."
    if FILE not in bundle.manifest.files:
        raise ValueError(f"the samplers of {bundle.root.name} were not compared yet; {again}")
    found = bundle.parsed(FILE, Comparison, "a comparison", again)
    plans = {name: evaluated for name, evaluated in found.plans.items() if _current(bundle.manifest, name, evaluated)}
    if not plans:
        raise ValueError(f"every graph of {bundle.root.name} has changed since its samplers were compared; {again}")
    return found.model_copy(update={"plans": plans})


def _current(manifest: Manifest, plan: str, evaluated: Evaluated) -> bool:
    return (
        plan in manifest.plans
        and evaluated.graph in manifest.graphs
        and digest(manifest, plan, evaluated.graph) == evaluated.sha256
    )

"""How good samples that are arrays are: distances between sets of them, and of real ones made from the same.

Each number is a distance of two sets (n, d) in units of the real ones' deviation, 0 for equal distributions: of moments, energy
(Szekely and Rizzo 2013) and sliced Wasserstein (Bonneel et al. 2015), beside what a user's own functions say. What samples are
made from stands beside them in every vector, so that a sampler that ignores it is found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.data import Labels
from fewstep.data.arrays import ArraySamples
from fewstep.evaluation.evaluator import Evaluator, psnr, refuse_unlike

__all__ = ["ArrayEvaluator", "ArrayScore", "Metric", "energy", "moments", "sliced_wasserstein"]

Array = npt.NDArray[Any]
Metric = Callable[[Array, Array], float]  # of real and made values (n, *axes, columns) in their units
PROJECTIONS = 128
LEAST = 10
SPAN = 2.0  # deviations


@dataclass(frozen=True)
class ArrayScore:
    """Of n samples against n held-out ones; every distance is better when lower.

    Args:
        mean, std: of the numbers' means and deviations, the root of the mean square difference.
        correlation: of the correlations of all pairs of numbers, likewise.
        energy: the energy distance, squared, of the vectors.
        sliced_wasserstein: the mean distance along random directions.
        own: what a user's functions said, by name.
        n: how many there were.
    """

    mean: float
    std: float
    correlation: float
    energy: float
    sliced_wasserstein: float
    n: int
    own: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """All that were measured, by name; a user's as "own.NAME"."""
        names = ("mean", "std", "correlation", "energy", "sliced_wasserstein")
        return {name: getattr(self, name) for name in names} | {f"own.{name}": value for name, value in self.own.items()}


class ArrayEvaluator(Evaluator):
    """Scores samples against a held-out split. Distances of unequal n do not compare, so n must be that of the split.

    Args:
        held_out: real samples.
        metrics: a user's own functions, by name.

    Raises:
        ValueError: for a split that is too small to say anything.
    """

    metric = "energy"

    def __init__(self, held_out: ArraySamples, metrics: Mapping[str, Metric] = {}) -> None:
        self.n, self.labels, self.metrics = len(held_out), held_out.labels, dict(metrics)
        if self.n < LEAST:
            raise ValueError(f"evaluating needs {LEAST} samples or more, got {self.n}; take more of them")
        self.scale = np.array(held_out.signature.output.deviations)
        self.values = held_out.rows[held_out.index]
        self.beside = _beside(held_out)
        self.real = self._vectors(np.moveaxis(self.values, -1, 1))

    def score(self, made: Array) -> ArrayScore:
        """Score values (n, columns, *axes), the i-th made from what the i-th held-out sample was made from.

        Raises ValueError when n is not the number of held-out samples.
        """
        return _scored(self, self._vectors(made), np.moveaxis(made, 1, -1))

    def distance(self, made: Array) -> float:
        """The energy distance alone. Raises ValueError as `score` does."""
        return energy(self.real, self._vectors(made))

    def scores(self, outputs: Array, labels: Labels | None) -> dict[str, float]:
        """The numbers of `score`; what samples were made from counts in all of them.

        Args:
            outputs: values (n, columns, *axes) in their units, the i-th made from what the i-th held-out sample was made from.
            labels: not read.

        Raises:
            ValueError: when n is not the number of held-out samples.
        """
        del labels
        return self.score(outputs).numbers()

    def scores_of(self, others: ArraySamples) -> dict[str, float]:
        """What as many other real samples come to, with what those were made from."""
        other = ArrayEvaluator(others, self.metrics)
        return _scored(self, other.real, other.values).numbers()

    def pair(self, outputs: Array, reference: Array) -> dict[str, float]:
        """PSNR in dB of values in units of their deviations, of a span of SPAN, and mean distance over that of unrelated ones.

        Args:
            outputs, reference: values (n, columns, *axes) in their units, from equal noise and inputs.

        Raises:
            ValueError: for unequal shapes, or another n than that of held-out samples.
        """
        refuse_unlike(outputs, reference)
        made, wanted = self._vectors(outputs), self._vectors(reference)
        apart = float((wanted - wanted.roll(1, 0)).norm(dim=1).mean())
        ratio = psnr(self._scaled(outputs), self._scaled(reference), SPAN)
        return {"psnr_db": ratio, "distance": float((made - wanted).norm(dim=1).mean()) / apart}

    def digest(self) -> str:
        """One hash for what this evaluates by."""
        return hashlib.sha256(self.real.numpy().tobytes()).hexdigest()

    def _vectors(self, values: Array) -> Tensor:
        """(n, d), in units of the columns' deviations, with what they were made from."""
        if len(values) != self.n:
            raise ValueError(f"the distance compares equal numbers of samples, {self.n} held-out ones, got {len(values)}")
        flat = self._scaled(values).reshape(self.n, -1)
        return torch.from_numpy(np.concatenate([flat, self.beside], 1).astype(np.float32))

    def _scaled(self, values: Array) -> Array:
        scaled: Array = values / self.scale.reshape(-1, *(1,) * (values.ndim - 2))
        return scaled


def _scored(evaluator: ArrayEvaluator, vectors: Tensor, values: Array) -> ArrayScore:
    """Of vectors (n, d) and of the values they are of, (n, *axes, columns)."""
    own = {name: float(metric(evaluator.values, values)) for name, metric in evaluator.metrics.items()}
    found = moments(evaluator.real, vectors)
    return ArrayScore(*found, energy(evaluator.real, vectors), sliced_wasserstein(evaluator.real, vectors), evaluator.n, own)


def _beside(samples: ArraySamples) -> Array:
    """What samples were made from, (n, d), each number in units of its deviation; classes as ones among zeros."""
    parts = [np.zeros((len(samples), 0))]
    for each in samples.signature.inputs:
        values = samples.arrays[each.name][samples.labels] if samples.arrays else samples.labels
        flat = np.eye(each.choices)[values] if each.choices else values.reshape(len(values), -1).astype(np.float64)
        deviation = flat.std(0)
        parts.append(flat / np.where(deviation > 0, deviation, 1.0))
    return np.concatenate(parts, 1)


def moments(real: Tensor, made: Tensor) -> tuple[float, float, float]:
    """How far means, deviations and correlations of two sets (n, d) are apart, root mean square over the numbers.

    Args:
        real, made: (n, d) and (m, d).

    Returns:
        Of means, deviations, correlations.
    """
    return (
        _apart(real.mean(0), made.mean(0)),
        _apart(real.std(0), made.std(0)),
        _apart(_correlations(real), _correlations(made)),
    )


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean().sqrt())


def _correlations(vectors: Tensor) -> Tensor:
    centered = vectors.double() - vectors.double().mean(0)
    deviation = centered.square().mean(0).sqrt().clamp(min=1e-12)
    scaled = centered / deviation
    return scaled.T @ scaled / len(vectors)


def energy(real: Tensor, made: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of two sets (n, d), without pairs of one with itself.

    Args:
        real, made: (n, d) and (m, d), two vectors or more in each.

    Returns:
        Near 0 for equal distributions, and by chance below.
    """
    n, m = len(real), len(made)
    across = torch.cdist(real, made).double().mean()
    inside = torch.cdist(real, real).double().sum() / (n * (n - 1)) + torch.cdist(made, made).double().sum() / (m * (m - 1))
    return float(2 * across - inside)


def sliced_wasserstein(real: Tensor, made: Tensor, *, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """The mean 1-Wasserstein distance of two sets (n, d) of equal size along random directions, the same for equal seeds.

    Args:
        real, made: (n, d) each.
        projections: how many directions.
        seed: of the directions.

    Raises:
        ValueError: for sets of unequal size.
    """
    if len(real) != len(made):
        raise ValueError(f"distances of unequal numbers of samples do not compare, got {len(real)}, {len(made)}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(real.shape[1], projections, generator=generator), dim=0)
    return float(((real @ directions).sort(0).values - (made @ directions).sort(0).values).abs().mean())

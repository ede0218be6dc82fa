"""How good images are: in the features of a network, distances to held-out real ones, coverage of them, class accuracy; and in
their plain pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from fewstep.data import Images, batches
from fewstep.evaluation.evaluator import Evaluator, psnr, refuse_unlike
from fewstep.evaluation.pixels import departures, statistics

__all__ = ["Features", "ImageEvaluator", "Score", "coverage", "frechet", "kernel", "spread"]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
CHUNK = 250
NEIGHBOURS = 5


class Features(nn.Module):
    """What a network must be to evaluate: images (B, C, H, W) uint8 -> features (B, num_features).

    head turns features into logits (B, classes); None for a network that knows nothing of the classes. trained_in: the
    precision that it was trained in here; None for one that came as it is.
    """

    num_features: int
    head: nn.Module | None
    trained_in: str | None = None


@dataclass(frozen=True)
class Score:
    """Of n images against n held-out ones.

    Args:
        frechet: distance, lower is better; Heusel et al. 2017.
        kernel: distance, times 1000, lower is better; Binkowski et al. 2018.
        precision, recall: share of images near a real one and the reverse; Kynkaanniemi et al. 2019.
        density, coverage: the same with less weight on outliers; Naeem et al. 2020.
        accuracy: share of images of the class asked for; None where none was, or none is known.
        pixels: how far brightness, contrast and so on are off, by name, see fewstep.evaluation.pixels.departures.
        n: how many there were.
    """

    frechet: float
    kernel: float
    precision: float
    recall: float
    density: float
    coverage: float
    accuracy: float | None
    pixels: Mapping[str, float]
    n: int

    def numbers(self) -> dict[str, float]:
        """All that were measured, by name; those of pixels as "pixels.NAME"."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("pixels", "n")}
        return {name: value for name, value in plain.items() if value is not None} | {
            f"pixels.{name}": value for name, value in self.pixels.items()
        }


class ImageEvaluator(Evaluator):
    """Scores images against a held-out split. Distances of unequal n do not compare, so n must be that of the split.

    Raises ValueError for a split that is too small to say anything.
    """

    metric = "frechet"

    def __init__(self, model: Features, held_out: Images) -> None:
        self.model = model
        self.n = len(held_out)
        if self.n <= NEIGHBOURS:
            raise ValueError(f"evaluating needs more than {NEIGHBOURS} images, got {self.n}; take more of them")
        self.labels = held_out.labels
        parts = [(self.features(images), statistics(torch.tensor(images))) for images, _ in batches(held_out, CHUNK)]
        self.real, self.pixels = (torch.cat(part) for part in zip(*parts, strict=True))

    def features(self, images: Bytes) -> Tensor:
        """(n, num_features) of images (n, C, H, W) uint8."""
        with torch.no_grad():
            return torch.cat([self.model(torch.tensor(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)])

    def score(self, images: Bytes, labels: Labels | None) -> Score:
        """Score images against the held-out ones.

        Args:
            images: (n, C, H, W) uint8.
            labels: the classes that were asked for, (n,); None where there were none.

        Raises:
            ValueError: when n is not the number of held-out images.
        """
        if len(images) != self.n or (labels is not None and len(labels) != self.n):
            raise ValueError(f"the distance compares equal numbers of images, {self.n} held-out ones, got {len(images)}")
        made = self.features(images)
        pixels = torch.cat([statistics(torch.tensor(images[i : i + CHUNK])) for i in range(0, self.n, CHUNK)])
        return Score(
            frechet(self.real, made),
            kernel(self.real, made),
            *coverage(self.real, made),
            self._accuracy(made, labels),
            departures(self.pixels, pixels),
            self.n,
        )

    def distance(self, outputs: npt.NDArray[Any]) -> float:
        """The Frechet distance alone. Raises ValueError as `score` does."""
        return frechet(self.real, self.features(outputs))

    def digest(self) -> str:
        """One hash for the features that this evaluates by."""
        return hashlib.sha256(self.real.numpy().tobytes()).hexdigest()

    def scores(self, outputs: npt.NDArray[Any], labels: Labels | None) -> dict[str, float]:
        """The numbers of `score`.

        Args:
            outputs, labels: images and classes, as for `score`.

        Raises:
            ValueError: when n is not the number of held-out images.
        """
        return self.score(outputs, labels).numbers()

    def pair(self, outputs: npt.NDArray[Any], reference: npt.NDArray[Any]) -> dict[str, float]:
        """PSNR in dB of images (n, C, H, W) uint8, and the mean distance of features over that of unrelated images.

        Args:
            outputs, reference: (n, C, H, W) uint8, from equal noise and inputs.

        Raises:
            ValueError: for unequal shapes.
        """
        refuse_unlike(outputs, reference)
        made, wanted = self.features(outputs), self.features(reference)
        apart = float((wanted - wanted.roll(1, 0)).norm(dim=1).mean())
        return {"psnr_db": psnr(outputs, reference, 255), "distance": float((made - wanted).norm(dim=1).mean()) / apart}

    def floor(self, train: Images, seed: int) -> Score:
        """The score of real training images, with the held-out split's classes: what a perfect generator would get.

        Args:
            train: with as many images of each class as the held-out split has, or more.
            seed: of which are taken.

        Raises:
            ValueError: where there are fewer of a class.
        """
        rng = np.random.default_rng(seed)
        members = {label: rng.permutation(np.flatnonzero(train.labels == label)) for label in np.unique(self.labels)}
        index = np.concatenate([members[label][: np.count_nonzero(self.labels == label)] for label in members])
        return self.score(*train[index])

    def _accuracy(self, made: Tensor, labels: Labels | None) -> float | None:
        if self.model.head is None or labels is None:
            return None
        with torch.no_grad():
            return float((self.model.head(made).argmax(1).numpy() == labels).mean())


class _Given(nn.Module):
    """Features that are features already, for torchmetrics. Its names say Inception; the distances are plain ones."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(real: Tensor, made: Tensor) -> float:
    """Frechet distance of two sets of features, as of two Gaussians. Heusel et al. 2017.

    Args:
        real, made: (n, d) each.

    Raises:
        ValueError: for unequal n.
    """
    _refuse_unequal(real, made)
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real, real=True)
    metric.update(made, real=False)
    return float(metric.compute())


def kernel(real: Tensor, made: Tensor) -> float:
    """Squared MMD of two sets of features, unbiased, cubic kernel, times 1000. Binkowski et al. 2018.

    Args:
        real, made: (n, d) each.

    Raises:
        ValueError: for unequal n.
    """
    _refuse_unequal(real, made)
    return float(poly_mmd(real, made)) * 1e3


def coverage(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage of two sets of features. Kynkaanniemi et al. 2019; Naeem et al. 2020.

    Args:
        real, made: (n, d) each.
        k: neighbours that a neighbourhood reaches to.

    Returns:
        Four shares, of which density alone may be above 1.

    Raises:
        ValueError: for unequal n, or n <= k.
    """
    _refuse_unequal(real, made)
    if len(real) <= k:
        raise ValueError(f"neighbourhoods of {k} need more than {k} images, got {len(real)}")
    across = torch.cdist(real.double(), made.double())
    real_radius, made_radius = (torch.cdist(x.double(), x.double()).kthvalue(k + 1, dim=1).values for x in (real, made))
    inside = across <= real_radius[:, None]
    return (
        float(inside.any(0).double().mean()),
        float((across <= made_radius).any(1).double().mean()),
        float(inside.double().sum(0).mean() / k),
        float((across.min(1).values <= real_radius).double().mean()),
    )


def spread(real: Tensor, made: Tensor, metric: Callable[[Tensor, Tensor], float], *, rounds: int = 20, seed: int = 0) -> float:
    """Standard error of a metric at this n, by drawing both sets anew with replacement.

    Says how sure a figure is, not where it lies: images drawn twice move distances up.

    Args:
        real, made: (n, d) each.
        metric: of two such sets.
        rounds: how often both are drawn.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(real)
    found = [metric(*(x[torch.randint(n, (n,), generator=generator)] for x in (real, made))) for _ in range(rounds)]
    return float(np.std(found, ddof=1))


def _refuse_unequal(real: Tensor, made: Tensor) -> None:
    if real.shape != made.shape:
        raise ValueError(f"distances of unequal numbers of images do not compare, got {tuple(real.shape)}, {tuple(made.shape)}")

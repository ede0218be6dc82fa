"""How good images are: Frechet distance in a classifier's features and class accuracy, against held-out real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from fewstep.calibration.classifier import Classifier
from fewstep.data import Images, batches

__all__ = ["Judge", "Score"]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
CHUNK = 250


@dataclass(frozen=True)
class Score:
    """Frechet distance to the held-out images (lower is better), share of images of the asked class, images judged."""

    frechet: float
    accuracy: float
    n: int


class Judge:
    """Scores images against a held-out split. Distances of unequal n do not compare, so n must be that of the split."""

    def __init__(self, model: Classifier, held_out: Images) -> None:
        self.model = model
        self.n = len(held_out)
        self.labels = held_out.labels
        # torchmetrics' name says Inception; with a network of ours it is the plain Frechet distance in its features.
        self._distance = FrechetInceptionDistance(feature=model, reset_real_features=False)
        for pixels, _ in batches(held_out, CHUNK):
            with torch.no_grad():
                self._distance.update(torch.tensor(pixels), real=True)

    def score(self, images: Bytes, labels: Labels) -> Score:
        """Score images (n, C, H, W) uint8 that were asked for as labels (n,).

        Raises ValueError when n is not the number of held-out images.
        """
        if len(images) != self.n or len(labels) != self.n:
            raise ValueError(f"the distance compares equal numbers of images, {self.n} held-out ones, got {len(images)}")
        self._distance.reset()
        right = 0
        with torch.no_grad():
            for start in range(0, self.n, CHUNK):
                pixels = torch.tensor(images[start : start + CHUNK])
                self._distance.update(pixels, real=False)
                guess = self.model.head(self.model(pixels)).argmax(1).numpy()
                right += int((guess == labels[start : start + CHUNK]).sum())
            frechet = float(self._distance.compute())
        return Score(frechet, right / self.n, self.n)

    def floor(self, train: Images, seed: int) -> Score:
        """The score of real training images, with the held-out split's classes: what a perfect generator would get."""
        rng = np.random.default_rng(seed)
        members = {label: rng.permutation(np.flatnonzero(train.labels == label)) for label in np.unique(self.labels)}
        index = np.concatenate([members[label][: np.count_nonzero(self.labels == label)] for label in members])
        return self.score(*train[index])

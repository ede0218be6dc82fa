"""The metrics against closed forms, and the classifier they measure in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.calibration.classifier import Classifier, ClassifierConfig, classifier
from fewstep.calibration.metrics import Judge
from fewstep.data import Images, open_images
from fewstep.manifest import Condition, ImageSpec


class TwoPixels(torch.nn.Module):
    """Features are two pixels, so the Frechet distance of Gaussian images has a closed form; the class is the brighter."""

    num_features = 2
    head = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    spec, condition = ImageSpec(channels=1, height=1, width=2), Condition(kind="labels", classes=2)
    return Images("made up", spec, condition, pixels, np.arange(len(pixels)), labels)


def test_frechet_distance_of_two_gaussians() -> None:
    rng, n = np.random.default_rng(0), 50_000
    real, fake = (rng.normal(m, s, (n, 1, 1, 2)).round().astype(np.uint8) for m, s in ((100, 10), (120, 20)))
    judge = Judge(TwoPixels(), _images(real.transpose(0, 2, 3, 1), np.zeros(n, np.int64)))
    # |m - m'|^2 + sum (s - s')^2 over two independent pixels; rounding adds 1/12 to each variance.
    assert judge.score(fake, np.zeros(n, np.int64)).frechet == pytest.approx(2 * (20**2 + 10**2), rel=0.02)
    assert judge.score(real, np.zeros(n, np.int64)).frechet == pytest.approx(0.0, abs=1e-3)


def test_accuracy_counts_images_of_the_asked_class() -> None:
    pixels = np.array([[9, 1], [1, 9], [9, 1], [9, 2]], np.uint8).reshape(4, 1, 1, 2)
    judge = Judge(TwoPixels(), _images(pixels.transpose(0, 2, 3, 1), np.zeros(4, np.int64)))
    assert judge.score(pixels, np.array([0, 1, 1, 0])).accuracy == 0.75


def test_unequal_numbers_are_refused() -> None:
    judge = Judge(TwoPixels(), _images(np.zeros((4, 1, 2, 1), np.uint8), np.zeros(4, np.int64)))
    with pytest.raises(ValueError, match="equal numbers of images, 4 held-out ones, got 3"):
        judge.score(np.zeros((3, 1, 1, 2), np.uint8), np.zeros(3, np.int64))


def test_the_classifier_learns_real_digits_is_cached_and_sees_noise(tmp_path: Path) -> None:
    train, held_out = open_images("mnist5k"), open_images("mnist5k", "held-out").every(4)
    config = ClassifierConfig(epochs=2)
    model = classifier(train, tmp_path, config)
    (cached,) = tmp_path.iterdir()
    written = cached.stat().st_mtime_ns
    again = classifier(train, tmp_path, config)
    assert cached.stat().st_mtime_ns == written
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    judge = Judge(model, held_out)
    real = judge.floor(train, seed=0)
    assert real.accuracy > 0.85
    noise = np.random.default_rng(0).integers(0, 255, (250, 1, 28, 28), np.uint8)
    assert judge.score(noise, held_out.labels).frechet > 20 * real.frechet
    swapped = np.roll(held_out.labels, 125)
    assert judge.score(held_out[np.arange(250)][0], swapped).accuracy < 0.3


def test_images_without_classes_have_no_classifier(tmp_path: Path) -> None:
    images = Images(
        "flat",
        ImageSpec(channels=1, height=1, width=2),
        Condition(kind="none"),
        np.zeros((5, 1, 2, 1), np.uint8),
        *[np.arange(5)] * 2,
    )
    with pytest.raises(ValueError, match="flat has no classes"):
        classifier(images, tmp_path)


def test_the_network_has_the_size_it_says() -> None:
    assert Classifier(1, 10).num_features == Classifier(1, 10)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape[1]

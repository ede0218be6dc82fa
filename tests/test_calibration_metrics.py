"""The metrics against closed forms, and the classifier they measure in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.data import Images, open_images
from fewstep.evaluation.classifier import Classifier, ClassifierConfig, classifier
from fewstep.evaluation.features import FITTING, EfficientNet, Inception, feature_network
from fewstep.evaluation.metrics import Features, ImageEvaluator, coverage, frechet, kernel, spread


class TwoPixels(Features):
    """Features are two pixels, so the Frechet distance of Gaussian images has a closed form; the class is the brighter."""

    num_features = 2
    head = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def _normal(seed: int, n: int = 2000, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    signature = Signature(inputs=(LabelInput(classes=2),), output=ImageOutput(channels=1, height=1, width=2))
    return Images("made up", signature, pixels, np.arange(len(pixels)), labels)


def test_frechet_distance_of_two_gaussians() -> None:
    rng, n = np.random.default_rng(0), 5000
    real, fake = (rng.normal(m, s, (n, 1, 1, 2)).round().astype(np.uint8) for m, s in ((100, 10), (120, 20)))
    evaluator = ImageEvaluator(TwoPixels(), _images(real.transpose(0, 2, 3, 1), np.zeros(n, np.int64)))
    # |m - m'|^2 + sum (s - s')^2 over two independent pixels; rounding adds 1/12 to each variance.
    assert evaluator.score(fake, np.zeros(n, np.int64)).frechet == pytest.approx(2 * (20**2 + 10**2), rel=0.05)
    assert evaluator.score(real, np.zeros(n, np.int64)).frechet == pytest.approx(0.0, abs=1e-3)


def test_distances_and_coverage_of_known_sets() -> None:
    real = _normal(0)
    assert frechet(real, _normal(1, mean=1.0, std=2.0)) == pytest.approx(4 * (1 + 1), rel=0.1)
    assert abs(kernel(real, _normal(1))) < 10 < kernel(real, _normal(1, mean=0.5))
    assert coverage(real, real) == (1.0, 1.0, pytest.approx(1.2), 1.0)  # each image and its five neighbours, over five
    precision, recall, density, covered = coverage(real, _normal(1))
    assert precision > 0.9
    assert recall > 0.9
    assert density == pytest.approx(1.0, abs=0.1)
    assert covered > 0.9
    narrow = coverage(real, _normal(1, std=0.2))  # good images of few kinds
    assert narrow[0] > 0.99
    assert max(narrow[1], narrow[3]) < 0.5
    assert coverage(real, _normal(1, mean=50.0)) == (0.0, 0.0, 0.0, 0.0)


def test_the_spread_is_that_of_sets_drawn_again() -> None:
    def gap(real: torch.Tensor, made: torch.Tensor) -> float:
        return float(made.mean() - real.mean())

    found = spread(_normal(0), _normal(1), gap, rounds=200)
    assert found == pytest.approx((2 / 2000 / 4) ** 0.5, rel=0.2)


def test_pairs_of_equal_noise() -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 255, (20, 1, 2, 1), np.uint8)
    evaluator = ImageEvaluator(TwoPixels(), _images(real, np.zeros(20, np.int64)))
    images = real.transpose(0, 3, 1, 2)
    assert evaluator.pair(images, images) == {"psnr_db": 200.0, "distance": 0.0}
    off = evaluator.pair((images.astype(int) + np.where(images > 127, -1, 1)).astype(np.uint8), images)
    assert off["psnr_db"] == pytest.approx(20 * np.log10(255))
    assert 0 < off["distance"] < 0.1
    with pytest.raises(ValueError, match="pairs are outputs of equal noise"):
        evaluator.pair(images[:3], images)


def test_unequal_sets_and_too_few_are_refused() -> None:
    for metric in (frechet, kernel, coverage):
        with pytest.raises(ValueError, match="unequal numbers"):
            metric(_normal(0, 10), _normal(0, 11))
    with pytest.raises(ValueError, match="need more than 5 images, got 5"):
        coverage(_normal(0, 5), _normal(1, 5))


def test_accuracy_counts_images_of_the_asked_class() -> None:
    pixels = np.array([[9, 1], [1, 9], [9, 1], [9, 2]] * 2, np.uint8).reshape(8, 1, 1, 2)
    evaluator = ImageEvaluator(TwoPixels(), _images(pixels.transpose(0, 2, 3, 1), np.zeros(8, np.int64)))
    assert evaluator.score(pixels, np.array([0, 1, 1, 0] * 2)).accuracy == 0.75
    assert evaluator.score(pixels, None).accuracy is None  # no class was asked for


def test_unequal_numbers_are_refused() -> None:
    evaluator = ImageEvaluator(TwoPixels(), _images(np.zeros((6, 1, 2, 1), np.uint8), np.zeros(6, np.int64)))
    with pytest.raises(ValueError, match="equal numbers of images, 6 held-out ones, got 3"):
        evaluator.score(np.zeros((3, 1, 1, 2), np.uint8), np.zeros(3, np.int64))


def test_too_few_images_say_nothing() -> None:
    with pytest.raises(ValueError, match="more than 5 images, got 5"):
        ImageEvaluator(TwoPixels(), _images(np.zeros((5, 1, 2, 1), np.uint8), np.zeros(5, np.int64)))


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
    evaluator = ImageEvaluator(model, held_out)
    real = evaluator.floor(train, seed=0)
    assert real.accuracy > 0.85
    noise = np.random.default_rng(0).integers(0, 255, (250, 1, 28, 28), np.uint8)
    assert evaluator.score(noise, held_out.labels).frechet > 20 * real.frechet
    swapped = np.roll(held_out.labels, 125)
    assert evaluator.score(held_out[np.arange(250)][0], swapped).accuracy < 0.3


def test_a_classifier_of_other_images_is_another(tmp_path: Path) -> None:
    labels, config = np.arange(20) % 2, ClassifierConfig(epochs=1)
    for times, level in enumerate((0, 0, 9)):
        classifier(Images.of(np.full((20, 8, 8, 1), level, np.uint8), labels), tmp_path, config)
        assert len(list(tmp_path.iterdir())) == 1 + times // 2


def test_images_without_classes_have_no_classifier(tmp_path: Path) -> None:
    images = Images.of(np.zeros((5, 1, 2, 1), np.uint8), source="flat")
    with pytest.raises(ValueError, match="flat has no classes"):
        classifier(images, tmp_path)


def test_the_network_has_the_size_it_says() -> None:
    assert Classifier(1, 10).num_features == Classifier(1, 10)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape[1]


def test_color_features_tell_images_apart_and_inception_needs_its_file(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra color is not installed")
    flat, noise = np.full((2, 3, 32, 32), 128, np.uint8), np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), np.uint8)
    model = EfficientNet()
    with torch.no_grad():
        found = model(torch.tensor(np.concatenate([flat, noise])))
        grey = model(torch.tensor(flat[:, :1]))
    assert found.shape == (4, model.num_features)
    assert torch.equal(found[0], found[1])
    assert float((found[0] - found[2]).norm()) > 0.2 * float(found[0].norm())
    torch.testing.assert_close(grey, found[:2], atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # what a fit sees is another network than what evaluates it
        evaluating, fitting = (feature_network("efficientnet", open_images("mnist5k"), seed=seed) for seed in (0, FITTING))
        torch.testing.assert_close(evaluating(torch.tensor(noise)), found[2:], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(fitting(torch.tensor(noise)), found[2:], atol=0.1)
    with pytest.raises(FileNotFoundError, match=r"or the file pt_inception.*none.pth is not there"):
        Inception(tmp_path / "none.pth")

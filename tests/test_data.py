"""Real data in three forms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import LabelInput
from fewstep.data import Images, batches, images_like, open_images

RNG = np.random.default_rng(0)


def _folder(root: Path, classes: int = 2, per_class: int = 5, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    for label in range(classes):
        directory = root / f"class{label}"
        directory.mkdir(parents=True)
        for i in range(per_class):
            pixels = np.full((size[1], size[0], 3), (40 * label + i) % 256, np.uint8)
            Image.fromarray(pixels).convert(mode).save(directory / f"{i}.png")
    return root


def test_mnist5k_has_balanced_disjoint_splits() -> None:
    train, held_out = open_images("mnist5k"), open_images("mnist5k", "held-out")
    assert (len(train), len(held_out)) == (4000, 1000)
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    assert not set(train.index) & set(held_out.index)
    assert train.image.shape == (1, 28, 28)
    assert train.signature.labels == LabelInput(classes=10)
    pixels, labels = train[np.array([0, 3999])]
    assert pixels.shape == (2, 1, 28, 28)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    assert labels.tolist() == [0, 9]
    assert len(held_out.every(4)) == 250


def test_an_image_folder_becomes_square_images_with_labels(tmp_path: Path) -> None:
    train = open_images(str(_folder(tmp_path / "data")))
    assert train.image.shape == (3, 10, 10)
    assert train.signature.labels is not None
    assert train.signature.labels.classes == 2
    pixels, labels = next(batches(train, 100))
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 40, 41, 42, 43]
    assert open_images(str(tmp_path / "data"), resolution=6).image.shape == (3, 6, 6)


def test_a_flat_grey_folder_has_no_inputs(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data", classes=1, mode="L") / "class0"
    images = open_images(str(folder))
    assert (images.signature.inputs, images.image.channels, len(images)) == ((), 1, 4)


def test_a_saved_data_set_and_parquet_read_alike(tmp_path: Path) -> None:
    import datasets

    rows = {"image": [Image.fromarray(RNG.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(10)], "label": [0, 1] * 5}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet" / "empty").mkdir(parents=True)  # folders are classes only where they hold image files
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    saved, parquet = (next(batches(open_images(str(tmp_path / name)), 100)) for name in ("saved", "parquet"))
    np.testing.assert_array_equal(saved[0], parquet[0])
    np.testing.assert_array_equal(saved[0][0].transpose(1, 2, 0), np.asarray(rows["image"][0]))
    assert saved[1].tolist() == parquet[1].tolist() == [0, 1] * 4


def test_arrays_are_split_like_any_source() -> None:
    pixels, labels = RNG.integers(0, 255, (20, 8, 6, 3), np.uint8), np.arange(20) % 2
    images = Images.of(pixels, labels)
    assert (images.image.shape, images.signature.inputs, len(images)) == ((3, 8, 6), (LabelInput(classes=2),), 16)
    np.testing.assert_array_equal(images[np.array([3])][0][0].transpose(1, 2, 0), pixels[images.index[3]])
    assert len(Images.of(pixels, split="held-out")) == 4
    for wrong in (pixels[0], pixels.astype(np.float32)):
        with pytest.raises(ValueError, match=r"pixels are \(N, H, W, C\) uint8"):
            Images.of(wrong)
    with pytest.raises(ValueError, match="images without a label"):
        Images.of(pixels, labels[1:])


def test_the_hash_tells_sources_apart(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    seen = [open_images(str(folder)).sha256, open_images(str(folder), "held-out").sha256]
    assert seen[0] == seen[1]
    assert open_images(str(folder), resolution=6).sha256 != seen[0]
    (folder / "class1" / "3.png").write_bytes((folder / "class1" / "2.png").read_bytes())
    assert open_images(str(folder)).sha256 != seen[0]
    assert Images.of(np.zeros((5, 2, 2, 1), np.uint8)).sha256 != Images.of(np.ones((5, 2, 2, 1), np.uint8)).sha256


def test_a_class_without_images_and_a_size_that_does_nothing_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    assert open_images(str(folder)).names == ("class0", "class1")
    with pytest.raises(ValueError, match="side of 1 pixel or more, got 0"):
        open_images(str(folder), resolution=0)
    with pytest.raises(ValueError, match="mnist5k has images of 28x28 as they are, not of 64"):
        open_images("mnist5k", resolution=64)
    (folder / "class00").mkdir()
    with pytest.raises(ValueError, match="data cannot be read as images: its folder class00 is a class without images"):
        open_images(str(folder))


def test_an_unknown_name_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'mnist' is neither a known data set \(mnist5k\) nor a directory"):
        open_images("mnist")
    with pytest.raises(ValueError, match="is empty; put images into it"):
        open_images(str(tmp_path))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    whole = (folder / "class1" / "3.png").read_bytes()
    (folder / "class1" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"class1/3.png is not a readable image"):
        open_images(str(folder))


def test_a_data_set_without_images_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"has no image column, it has \['text'\]"):
        open_images(str(tmp_path / "saved"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes (cannot be read as images|holds no images|has no image column)"):
        open_images(str(tmp_path / "notes"))


def test_too_few_images_for_a_held_out_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves no held-out samples"):
        open_images(str(_folder(tmp_path / "data", per_class=2)), "held-out")


def test_images_are_brought_to_the_size_that_a_bundle_makes(tmp_path: Path, digits: Bundle) -> None:
    folder = _folder(tmp_path / "larger", size=(40, 50), mode="L")
    found = images_like(digits, str(folder), "all")
    assert found.image == digits.manifest.output
    assert (found[np.arange(1)][0] == open_images(str(folder), "all", resolution=28)[np.arange(1)][0]).all()


def test_images_and_classes_that_a_bundle_does_not_make_are_refused(tmp_path: Path, digits: Bundle) -> None:
    with pytest.raises(ValueError, match=r"makes images \(1, 28, 28\), .* has \(3, 28, 28\); give images like"):
        images_like(digits, str(_folder(tmp_path / "color")))
    with pytest.raises(ValueError, match=r"more is not of the classes of digits.bundle: there are 10, and it has more"):
        images_like(digits, str(_folder(tmp_path / "more", classes=11, mode="L")))

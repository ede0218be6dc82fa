"""Data sets as tables: which columns are meant, which classes, and what a row may not say."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from test_cli import refused

from fewstep.artifact.signature import LabelInput
from fewstep.data import Images, batches, open_images
from fewstep.data.latents import encode_images, open_latents
from fewstep.data.stream import open_stream


def png(value: int) -> bytes:
    Image.new("L", (8, 8), value).save(file := io.BytesIO(), "png")
    return file.getvalue()


def rows(count: int = 10, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]


def parquet(root: Path, name: str = "a.parquet", **columns: Any) -> Path:
    """A parquet file without what `datasets` says besides."""
    root.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": rows(), **columns}), root / name)
    return root


def labelled(root: Path, labels: list[Any], feature: Any) -> Path:
    """The same rows as parquet, and as save_to_disk writes them."""
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    data = datasets.Dataset.from_dict({"image": rows(len(labels)), "label": labels}, features=features)
    data.save_to_disk(root / "saved")
    (root / "parquet").mkdir()
    data.to_parquet(root / "parquet" / "a.parquet")
    return root


def three_ways(root: Path) -> list[Images]:
    """As both directories and the stream of the one, training images alone."""
    return [*(open_images(str(root / name)) for name in ("saved", "parquet")), open_stream(f"file://{root / 'parquet'}")]


def values(images: Images) -> list[int]:
    return next(batches(images, 1000))[0][:, 0, 0, 0].tolist()


def test_names_of_classes_come_along(tmp_path: Path) -> None:
    labelled(tmp_path, [2, 0] * 10, datasets.ClassLabel(names=["bus", "car", "train", "plane"]))
    for images in three_ways(tmp_path):
        assert images.names == ("bus", "car", "train")
        assert images.labels.tolist() == [2, 0] * 8
        assert images.signature.labels == LabelInput(classes=3, names=images.names)
        assert "20 images in 2 classes: 0 bus (10), 2 train (10); none of 1 car, 3 plane" in images.notes[0]


@pytest.mark.parametrize("kind", ["string", "large_string", "categories"])
def test_labels_in_words_are_classes_as_they_sort(kind: str, tmp_path: Path) -> None:
    words = pyarrow.array(["train", "bus"] * 5)
    column = words.dictionary_encode() if kind == "categories" else words.cast(getattr(pyarrow, kind)())
    root = parquet(tmp_path / "data", label=column)
    for images in (open_images(str(root), "all"), open_stream(f"file://{root}")):
        assert images.names == ("bus", "train")
        assert images.labels[:4].tolist() == [1, 0, 1, 0]


def test_an_image_without_a_label_is_counted_and_refused(tmp_path: Path) -> None:
    labelled(tmp_path, [0, 1, -1, 1, -1], datasets.ClassLabel(names=["bus", "car"]))
    for name in ("saved", "parquet"):
        with pytest.raises(ValueError, match=f"{name} has 2 images without a label, a whole number from 0 or a word"):
            open_images(str(tmp_path / name))
    with pytest.raises(ValueError, match="has 2 images without a label"):
        open_stream(f"file://{tmp_path / 'parquet'}")
    for number, column in enumerate(([None, *"ab" * 4, "a"], [None, *range(9)], [0.5] * 10, [[0]] * 10, [True] * 10)):
        with pytest.raises(ValueError, match="images without a label"):
            open_images(str(parquet(tmp_path / str(number), label=column)))
    for number, word in enumerate(("a\nb", "", "\x1b[31m")):
        with pytest.raises(ValueError, match=r"has a class '.*', a name that cannot be printed") as refusal:
            open_images(str(parquet(tmp_path / f"word{number}", label=[word, *"c" * 9])))
        assert str(refusal.value).isprintable()
    with pytest.raises(ValueError, match="an image of the class 4000000000000"):
        open_images(str(parquet(tmp_path / "huge", label=[4 * 10**12, *range(9)])))


def test_columns_are_chosen_plainly_and_the_others_named(tmp_path: Path) -> None:
    other = [{"bytes": png(200), "path": None}] * 10
    root = parquet(tmp_path / "data", mask=other, fine_label=list(range(10)))
    for images in (open_images(str(root), "all"), open_stream(f"file://{root}")):
        assert images[np.arange(2)][0][:, 0, 0, 0].tolist() == [0, 1]
        assert "columns not read: mask, fine_label" in images.notes
    pyarrow.parquet.write_table(pyarrow.table({"before": other, "after": other}), root / "a.parquet")
    for refuse in (open_images, open_stream):
        with pytest.raises(ValueError, match="has several image columns, before, after; name the one that is meant `image`"):
            refuse(f"file://{root}" if refuse is open_stream else str(root))
    features = datasets.Features({"sound": datasets.Audio(), "text": datasets.Value("string")})
    sounds = pyarrow.table({"sound": other, "text": ["a"] * 10})
    pyarrow.parquet.write_table(sounds.replace_schema_metadata(features.arrow_schema.metadata), root / "a.parquet")
    with pytest.raises(ValueError, match=r"has no image column, it has \['sound', 'text'\]"):
        open_images(str(root))


def test_files_of_one_stream_or_directory_agree(tmp_path: Path) -> None:
    root = parquet(tmp_path / "data", label=[0, 1] * 5)
    parquet(root, "b.parquet", label=[0, 1] * 5)
    assert len(open_images(str(root), "all")) == 20
    parquet(root, "c.parquet")
    for names in (("bus", "car"), ("car", "bus")):  # the same numbers, of other classes
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        table = pyarrow.table({"image": rows(), "label": [0, 1] * 5}).replace_schema_metadata(features.arrow_schema.metadata)
        (tmp_path / "other").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "other" / f"{names[0]}.parquet")
    for some in (root, tmp_path / "other"):
        for opening, source in ((open_stream, f"file://{some}"), (open_images, str(some))):
            with pytest.raises(
                ValueError, match=r"ca?r?.parquet has other columns or classes than .*(a|bus).parquet; put them"
            ):
                opening(source)


def test_every_parquet_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    names = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "deep/er/validation.PARQUET")
    for i, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"image": rows(10, 20 * i)}), path)
    shutil.copytree(tmp_path / "data" / "deep", tmp_path / "data" / ".cache")
    (tmp_path / "data" / "README.md").write_text("---\nconfigs:\n- data_files: test*\n---\n")
    images = open_images(str(tmp_path / "data"), "all")
    assert sorted(values(images)) == [20 * i + j for i in range(3) for j in range(10)]
    assert images.notes[-2:] == ("not read: 1 .md (such as README.md)", "passed over: .cache (hidden)")
    stream = open_stream(f"file://{tmp_path / 'data'}")
    assert len(stream) == 24
    assert "not read: 2 files that are no parquet" in stream.notes


def test_a_copy_that_keeps_its_time_is_seen(tmp_path: Path) -> None:
    root = parquet(tmp_path / "data")
    before = open_images(str(root))
    about = (root / "a.parquet").stat()
    table = pyarrow.parquet.read_table(root / "a.parquet")
    pyarrow.parquet.write_table(table.take(list(range(9, -1, -1))), tmp_path / "turned.parquet")
    os.utime(tmp_path / "turned.parquet", ns=(about.st_atime_ns, about.st_mtime_ns))
    shutil.copy2(tmp_path / "turned.parquet", root / "a.parquet")
    assert (root / "a.parquet").stat().st_mtime_ns == about.st_mtime_ns
    after = open_images(str(root))
    assert values(open_images(str(root), "all")) == list(range(9, -1, -1))
    assert after.sha256 != before.sha256


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../secret.png", "a/../../secret.png", "link.png", "https://h/x.png", "s3://b/x"]
)
def test_a_row_may_not_name_a_file_outside_the_data_set(path: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png(99))
    (root / "inside.png").write_bytes(png(7))
    items = [*rows(9), {"bytes": None, "path": "inside.png"}]
    pyarrow.parquet.write_table(pyarrow.table({"image": items}), root / "a.parquet")
    assert values(open_images(str(root), "all"))[9] == 7
    if path == "link.png":
        (root / path).symlink_to(tmp_path / "secret.png")
    pyarrow.parquet.write_table(pyarrow.table({"image": [*items, {"bytes": None, "path": path}]}), root / "a.parquet")
    with pytest.raises(
        ValueError, match=r"image 10 of .* is not a readable image \(it is said to lie at .*, outside the data set"
    ):
        open_images(str(root))
    stream = open_stream(f"file://{root}")  # the last of ten is held out, and the eleventh is for training
    with pytest.raises(ValueError, match=r"image 10 of row group 0 .* no bytes of its own, and a stream opens no other files"):
        stream[np.array([len(stream) - 1])]


def test_images_that_no_row_names_are_refused(tmp_path: Path) -> None:
    root = parquet(tmp_path / "data")
    (root / "bus").mkdir()
    (root / "bus" / "0.png").write_bytes(png(7))
    with pytest.raises(
        ValueError, match=r"has the rows of a data set, and 1 image files that none of them names, such as bus/0.png"
    ):
        open_images(str(root))
    labelled(tmp_path, [0, 1] * 5, datasets.Value("int64"))
    (tmp_path / "saved" / "0.png").write_bytes(png(7))
    with pytest.raises(ValueError, match=r"1 image files that none of them names, such as 0.png"):
        open_images(str(tmp_path / "saved"))


def test_parts_of_a_saved_data_set_are_named(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    parts = {
        name: datasets.Dataset.from_dict({"image": rows(count)}, features=features) for name, count in (("a", 5), ("b", 6))
    }
    datasets.DatasetDict({"test": parts["b"], "train": parts["a"]}).save_to_disk(tmp_path / "two")
    images = open_images(str(tmp_path / "two"), "all")
    assert len(images) == 5
    assert images.notes[-1] == "read: the part train; not read: test (6 rows)"
    datasets.DatasetDict({"only": parts["b"]}).save_to_disk(tmp_path / "one")
    assert len(open_images(str(tmp_path / "one"), "all")) == 6
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="has the parts a, b, and none is called train; give the directory of one"):
        open_images(str(tmp_path / "none"))
    assert len(open_images(str(tmp_path / "none" / "a"), "all")) == 5


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    items = [*rows(5), {"bytes": b"", "path": None}, None, {"bytes": b"%!PS-Adobe", "path": "x\x1b.png"}]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": items}), tmp_path / "data" / "a.parquet")
    message = refused("train", "--data", tmp_path / "data", "--out", tmp_path / "a")
    assert "image 5 of" in message
    assert "it has neither bytes nor a path" in message
    assert "nor are 2 others" in message
    for damage in (lambda whole: whole[:-40], lambda whole: b"\0" * 64 + whole[64:], lambda _: b""):
        (tmp_path / "data" / "a.parquet").write_bytes(damage((parquet(tmp_path / "good") / "a.parquet").read_bytes()))
        assert "fewstep: " in refused("train", "--data", tmp_path / "data", "--out", tmp_path / "a")


def test_latents_keep_the_names_of_classes(tmp_path: Path) -> None:
    from test_trainer_data import _autoencoder

    said: list[str] = []
    vae = _autoencoder(tmp_path / "vae", "AutoencoderTiny")
    (tmp_path / "color").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["bus", "car"])})
    pictures = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(10)]
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 5}, features=features)
    data.to_parquet(tmp_path / "color" / "a.parquet")
    latents = open_latents(encode_images(str(tmp_path / "color"), vae, tmp_path / "latents", note=said.append))
    assert latents.names == ("bus", "car")
    assert latents.notes == tuple(said)
    assert said[0].endswith("color: 10 images in 2 classes: 0 bus (5), 1 car (5)")

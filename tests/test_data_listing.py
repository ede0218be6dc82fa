"""Every image and every class that lies there is used or named; no library's convention for names decides anything."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import LabelInput, Signature
from fewstep.data import Images, batches, images_like, open_images


def folder(root: Path, classes: Any = ("a", "b"), per_class: int = 5) -> Path:
    """Grey images of one value each, which says which it is: class 0 has 0, 1, .., class 1 has 40, 41, ..."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("L", (8, 8), (40 * label + i) % 256).save(root / name / f"{i}.png")
    return root


def values(images: Images) -> list[int]:
    return next(batches(images, 10_000))[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("test", "train", "val"),
        ("data", "default", "validation"),
        ("dev", "eval", "holdout"),
        ("a[0]", "b*", "c?"),
        ("-00000-of-00001", "train-00000", "{x}"),
        ("class.parquet", "photos.zip", "x.png"),
        ("日本", "ñandú", "🚌"),
    ],
)
def test_no_name_of_a_class_or_a_file_means_anything_else(names: tuple[str, ...], tmp_path: Path) -> None:
    root = folder(tmp_path / "train", names, 10)
    for name in names:
        for i, other in enumerate(("train.png", "test.PNG", "val-0.JPG", "a b.png", "#%[1].png")):
            (root / name / f"{i}.png").rename(root / name / other)
    images = open_images(str(root), "all")
    assert len(images) == 30
    assert images.names == tuple(sorted(names))
    assert np.bincount(images.labels).tolist() == [10] * 3
    number = {name: images.names.index(name) for name in names}
    assert sorted(values(images)) == sorted(40 * label + i for label in range(3) for i in range(10))
    assert all(images.labels[at] == number[names[value // 40]] for at, value in enumerate(values(images)))
    assert images.notes[0].endswith(
        ": 30 images in 3 classes: " + ", ".join(f"{i} {n} (10)" for i, n in enumerate(images.names))
    )


def test_every_spelling_of_a_suffix_and_every_second_file_of_a_stem_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = ["a.png", "a.jpg", "a.JPEG", "a.Jpe", "a.jfif", "a.WebP", "a.GIF", "a.bmp", "a.dib", "a.tif", "a.TIFF", "a.b.png"]
    for i, name in enumerate(names):
        kind = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "dib": "bmp", "tif": "tiff"}
        suffix = name.rsplit(".", 1)[1].lower()
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "data" / name, kind.get(suffix, suffix))
    images = open_images(str(tmp_path / "data"), "all")
    assert sorted(np.round(np.array(values(images)) / 20).astype(int).tolist()) == list(range(12))
    assert (images.names, images.signature.inputs) == ((), ())


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    for name in ("metadata.csv", "a/0.txt", "a/1.txt", "b/0.HEIC", "b/README", "train.zip"):
        (root / name).write_text("x")
    for name in (".DS_Store", "a/Thumbs.db", "b/desktop.ini", "a/._0.png"):  # of no account
        (root / name).write_text("x")
    for name in ("__MACOSX/a", "@eaDir", "a/@eaDir", ".git", "a/.ipynb_checkpoints"):
        (root / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / name / "0.png")
    images = open_images(str(root), "all")
    assert values(images) == [0, 1, 2, 3, 4, 40, 41, 42, 43, 44]
    assert images.notes[1:] == (
        "not read: 2 .txt (such as a/0.txt), 1 .heic (such as b/0.HEIC), 1 without a suffix (such as b/README), 1 .csv (such "
        "as metadata.csv), 1 .zip (such as train.zip)",
        "passed over: .git (hidden), a/.ipynb_checkpoints (hidden)",
    )


def test_a_class_that_lacks_images_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    assert len(open_images(str(root), "all")) == 10
    (root / "c").mkdir()
    with pytest.raises(ValueError, match="its folder c is a class without images; put some"):
        open_images(str(root))
    (root / "c" / "0.heic").write_text("x")
    with pytest.raises(ValueError, match=r"its folder c is a class without images \(it holds 1 .heic \(such as c/0.heic\)\)"):
        open_images(str(root))
    (root / "c" / "0.heic").rename(root / "c" / "0.png")
    with pytest.raises(ValueError, match=r"c/0.png is not a readable image"):
        open_images(str(root))
    shutil.rmtree(root)
    (root / "a").mkdir(parents=True)
    (root / "a" / "0.heic").write_text("x")
    with pytest.raises(ValueError, match=r"holds no images of PNG, .*, but 1 .heic \(such as a/0.heic\); put some in"):
        open_images(str(root))


def test_folders_within_a_class_belong_to_it_unless_they_may_be_the_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    (root / "a" / "more" / "still").mkdir(parents=True)
    Image.new("L", (8, 8), 9).save(root / "a" / "more" / "0.png")
    Image.new("L", (8, 8), 8).save(root / "a" / "more" / "still" / "0.png")
    images = open_images(str(root), "all")
    assert images.names == ("a", "b")
    assert sorted(zip(images.labels.tolist(), values(images), strict=True))[5:7] == [(0, 8), (0, 9)]
    assert images.notes[-1] == "2 images of the class a lie in folders within it"
    for layout in ("train", "test"):
        folder(tmp_path / "split" / layout)
    with pytest.raises(ValueError, match="images lie in test/a, and none in test itself; give the folder whose folders are"):
        open_images(str(tmp_path / "split"))


def test_images_beside_classes_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    Image.new("L", (8, 8)).save(root / "cover.png")
    with pytest.raises(ValueError, match=r"has images of classes, in folders, and 1 of none, such as cover.png; put all into"):
        open_images(str(root))


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of other systems")
def test_links_are_followed_and_never_in_a_circle(tmp_path: Path) -> None:
    root, elsewhere = folder(tmp_path / "data"), folder(tmp_path / "elsewhere", ("c",))
    (root / "c").symlink_to(elsewhere / "c", target_is_directory=True)
    (root / "a" / "5.png").symlink_to(elsewhere / "c" / "0.png")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b", target_is_directory=True)
    os.mkfifo(root / "b" / "pipe.png")
    images = open_images(str(root), "all")
    assert images.names == ("a", "b", "c")
    assert np.bincount(images.labels).tolist() == [6, 5, 5]
    circle = "(a link to a folder that holds it)"
    assert images.notes[-1] == f"passed over: a/up {circle}, b/pipe.png (not a file), b/self {circle}"
    for target in (tmp_path / "nowhere", root / "a" / "9.png"):  # a dead link, and one to itself
        (root / "a" / "9.png").symlink_to(target)
        with pytest.raises(ValueError, match=r"a/9.png is not a readable image \(it is not a file, or a link that leads now"):
            open_images(str(root))
        (root / "a" / "9.png").unlink()
    (root / "b" / "through.png").symlink_to(root / "b" / "pipe.png")  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"through.png is not a readable image"):
        open_images(str(root))


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere know one spelling, or refuse such bytes")
def test_names_of_any_alphabet_are_numbered_alike_everywhere(tmp_path: Path) -> None:
    """é is one character on one system and two on another, and sorts after f or before it."""
    one, two = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    first, second = (open_images(str(folder(tmp_path / str(i), (name, "f"))), "all") for i, name in enumerate((one, two)))
    assert first.names == second.names == ("f", one)
    assert first.labels.tolist() == second.labels.tolist()
    assert values(first) == values(second)
    folder(tmp_path / "0" / "more", ())
    (tmp_path / "0" / two).mkdir()
    with pytest.raises(ValueError, match="has two folders that both read é, in other bytes; rename one"):
        open_images(str(tmp_path / "0"))
    for name in (b"\xff\xfe", b"line\nbreak", b"\x1b[31mred"):
        root = folder(tmp_path / "2")
        shutil.copytree(root / "a", root / os.fsdecode(name))
        with pytest.raises(ValueError, match="whose name cannot be printed; rename it") as refusal:
            open_images(str(root))
        assert str(refusal.value).isprintable()
        shutil.rmtree(root)
    root = folder(tmp_path / "3")
    shutil.copy(root / "a" / "0.png", os.fsencode(root) + b"/a/\xff\x1b.png")
    assert len(open_images(str(root), "all")) == 11
    shutil.copy(__file__, os.fsencode(root) + b"/a/\xfe\x1b.png")
    with pytest.raises(ValueError, match=r"a/\\udcfe\\x1b.png is not a readable image") as refusal:
        open_images(str(root))
    assert str(refusal.value).isprintable()


def test_classes_of_a_bundle_keep_their_numbers(tmp_path: Path, digits: Bundle) -> None:
    """A folder that lacks a class would number those behind it anew."""
    names = ["bus", "car", "train", *"0123456"]
    known = LabelInput(classes=10, names=names)
    digits.manifest.signature = Signature(inputs=(known,), output=digits.manifest.output)
    root = folder(tmp_path / "data", ("bus", "train"))
    images = images_like(digits, str(root), "all")
    assert images.labels.tolist() == [0] * 5 + [2] * 5
    assert images.names == tuple(names)
    assert images.signature == digits.manifest.signature
    assert images.notes[-1] == "classes are numbered as digits.bundle numbers them"
    whole = images_like(digits, str(folder(tmp_path / "whole", names[:3])), "all")
    assert whole.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    (root / "train").rename(root / "plane")
    with pytest.raises(
        ValueError, match=r"is not of the classes of digits.bundle: there are bus, car, .* it has plane besides"
    ):
        images_like(digits, str(root))


def test_a_great_many_classes_are_counted_in_one_line(tmp_path: Path) -> None:
    pixels, labels = np.zeros((606, 2, 2, 1), np.uint8), np.arange(606) % 101
    assert Images.of(pixels, labels).notes == ("arrays: 606 images in 101 classes: 6 to 6 of each",)
    assert Images.of(pixels[:4], labels[:4] * 2 + 1).notes[0].endswith("1 (1), 3 (1), 5 (1), 7 (1); none of 0, 2, 4, 6")

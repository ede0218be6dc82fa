"""A split of a data set: its images, decoded when asked for, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.artifact.classes import check_class_names
from fewstep.artifact.manifest import Condition, ImageSpec
from fewstep.artifact.spec import MAX_SIZE
from fewstep.data.listing import plain, shown

__all__ = [
    "Bytes",
    "Images",
    "Labels",
    "Rows",
    "Split",
    "batches",
    "checked_labels",
    "classes",
    "described",
    "digest",
    "positions",
]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Split = Literal["train", "held-out", "all"]
HELD_OUT = 5  # every fifth image of each class is never trained on
LISTED = 100  # classes that a line counts one by one


class Rows(Protocol):
    """Decodes images: rows[i] gives (len(i), H, W, C) uint8."""

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Bytes: ...


@dataclass(frozen=True)
class Images:
    """A split of a data set. Pixels are decoded when asked for, labels (N,) are in memory (all 0 without classes).

    Where the condition is embeddings, labels are the rows of the images' prompts. sha256: of what the source holds, so that a
    run goes on with the images it began with; names, the classes' where the source has some; notes, lines for people about what
    was found and what becomes of it.
    """

    source: str
    image: ImageSpec
    condition: Condition
    rows: Rows
    index: Labels
    labels: Labels
    sha256: str = field(default="", kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

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
        labels, _ = checked_labels(source, len(pixels), labels)
        index = positions(source, labels, split)
        _, height, width, channels = pixels.shape
        spec, notes = ImageSpec(channels=channels, height=height, width=width), (described(source, labels, ()),)
        about: dict[str, Any] = {"sha256": digest(pixels, labels), "notes": notes}
        return cls(source, spec, classes(labels), pixels, index, labels[index], **about)

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


def digest(*parts: object) -> str:
    """One hash of arrays and of whatever else says what it is."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


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


def checked_labels(source: str, count: int, column: Any, names: Sequence[str] = ()) -> tuple[Labels, tuple[str, ...]]:
    """A column of labels as numbers, and names that go with them: those given, or the words that a column is of, as they sort.

    None is a column of 0. Raises ValueError where an image has no label, or one beyond the names.
    """
    labels = np.zeros(count, np.int64) if column is None else np.asarray(column)
    if labels.dtype.kind in "OUT" and labels.size and all(isinstance(word, str) for word in labels.tolist()):
        words = [plain(word) for word in labels.tolist()]
        names = sorted(set(words))
        numbers = {word: number for number, word in enumerate(names)}
        labels = np.array([numbers[word] for word in words], np.int64)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        without = int((labels < 0).sum()) if labels.dtype.kind == "i" and labels.shape == (count,) else 0
        raise ValueError(
            f"{source} has {f'{without} ' if without else ''}images without a label, a whole number from 0 or a word; "
            "give every image one, or none any"
        )
    last = int(labels.max())
    if last >= MAX_SIZE or (names and last >= len(names)):
        raise ValueError(f"{source} has an image of the class {last}, of {len(names) or MAX_SIZE} that there may be")
    if bad := [name for name in names if not name or not name.isprintable()]:
        raise ValueError(f"{source} has a class {shown(bad[0])!r}, a name that cannot be printed; give it another")
    return labels.astype(np.int64), tuple(names)


def names_of(labels: Labels, names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes up to the last one that has images; none where there are no two."""
    last = int(labels.max())
    return tuple(names[: last + 1]) if last else ()


def described(source: str, labels: Labels, names: Sequence[str]) -> str:
    """How many images there are, of which classes, and which classes have none."""
    counts = dict(zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True))
    last = max(counts)
    missing = [n for n in range(max(len(names), last + 1)) if n not in counts]
    called = [f"{n} {name}" for n, name in enumerate(names)] or [str(n) for n in range(last + 1)]
    if len(counts) > LISTED:
        said = f"{min(counts.values())} to {max(counts.values())} of each"
    else:
        said = ", ".join(f"{called[n]} ({count})" for n, count in counts.items())
    text = f"{source}: {len(labels)} images" + (f" in {len(counts)} classes: {said}" if last else "")
    more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    return text + (f"; none of {', '.join(called[n] for n in missing[:LISTED])}{more}" if missing else "")

"""Images as samples: uint8 pixels, and the labels and class names that sources give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fewstep.artifact.signature import MAX_SIZE, ImageOutput, Signature
from fewstep.data.listing import plain, shown
from fewstep.data.samples import Labels, Samples, Split, classes, digest, positions

__all__ = ["Bytes", "Images", "checked_labels", "described", "names_of"]

Bytes = npt.NDArray[np.uint8]
LISTED = 100  # classes that a line counts one by one


@dataclass(frozen=True)
class Images(Samples):
    """A split of images; rows are (N, H, W, C) uint8."""

    @classmethod
    def of(cls, pixels: Bytes, labels: Labels | None = None, *, source: str = "arrays", split: Split = "train") -> Images:
        """A split of pixels in memory.

        Args:
            pixels: (N, H, W, C) uint8.
            labels: (N,), whole numbers from 0; none unless given.
            source: what the bundle and its card are to call them.
            split: train, held-out or all.

        Raises:
            ValueError: for arrays of other shapes or types, or where nothing is left for the split.
        """
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ValueError(f"pixels are (N, H, W, C) uint8, got {pixels.shape} {pixels.dtype}")
        labels, _ = checked_labels(source, len(pixels), labels)
        index = positions(source, labels, split)
        _, height, width, channels = pixels.shape
        output, notes = ImageOutput(channels=channels, height=height, width=width), (described(source, labels, ()),)
        signature = Signature(inputs=classes(source, labels), output=output)
        about: dict[str, Any] = {"sha256": digest(pixels, labels), "notes": notes}
        return cls(source, signature, pixels, index, labels[index], **about)

    @property
    def image(self) -> ImageOutput:
        """What the images are."""
        return cast(ImageOutput, self.signature.output)

    def __getitem__(self, i: npt.NDArray[np.int64]) -> tuple[Bytes, Labels]:
        """Images (B, C, H, W) uint8 and labels (B,) at positions i."""
        pixels = self.rows[self.index[i]]
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), self.labels[i]

    def states(self, values: Any, normal: Callable[..., Any]) -> Any:
        """Bytes as numbers in low .. high.

        Args:
            values: a tensor of bytes, (B, C, H, W).
            normal: not called.
        """
        del normal
        return self.image.low + values.float() * ((self.image.high - self.image.low) / 255)


def checked_labels(source: str, count: int, column: Any, names: Sequence[str] = ()) -> tuple[Labels, tuple[str, ...]]:
    """A column of labels as numbers, and names that go with them: those given, or the words that a column is of, as they sort.

    Args:
        source: for the sentences.
        count: how many images there are.
        column: (count,) whole numbers from 0 or words; None is a column of 0.
        names: of the classes, by number; those of words take their place.

    Returns:
        Labels (count,), and names.

    Raises:
        ValueError: where an image has no label, or one beyond the names, or a name cannot be printed.
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
    """The names of classes up to the last one that has images; none where there are no two.

    Args:
        labels: of all images, (N,).
        names: by number, also of classes without images.
    """
    last = int(labels.max())
    return tuple(names[: last + 1]) if last else ()


def described(source: str, labels: Labels, names: Sequence[str]) -> str:
    """How many images there are, of which classes, and which classes have none.

    Args:
        source: what images are called.
        labels: of all images, (N,).
        names: by number; empty where classes have none.
    """
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

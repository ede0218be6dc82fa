"""A split of a data set: what samples are, read when asked for, and the numbers of what they are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from fewstep.artifact.classes import check_class_names
from fewstep.artifact.signature import Input, LabelInput, Signature, State

__all__ = ["Labels", "Rows", "Samples", "Split", "batches", "classes", "digest", "positions"]

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
Split = Literal["train", "held-out", "all"]
HELD_OUT = 5  # every fifth sample of each class is never trained on


class Rows(Protocol):
    """Reads samples: rows[i] gives (len(i), ...)."""

    def __getitem__(self, index: Labels) -> Array: ...


@dataclass(frozen=True)
class Samples:
    """A split of a data set. Samples are read when asked for, labels (N,) are in memory (all 0 where there is nothing to tell).

    Args:
        source: what the bundle and its card call it.
        signature: what samples are made from, and what they are.
        rows: of all samples of the source.
        index: positions of this split among them, (N,).
        labels: classes or, where a signature has arrays, rows of these, (N,); see fewstep.data.conditions.
        arrays: what goes with samples, by the names of inputs, (rows, ...), where the source has some.
        sha256: of what the source holds, so that a run goes on with the samples it began with.
        names: of classes, where the source has some.
        notes: lines for people about what was found and what becomes of it.
    """

    source: str
    signature: Signature
    rows: Rows
    index: Labels
    labels: Labels
    arrays: Mapping[str, Array] = field(default_factory=dict, kw_only=True)
    sha256: str = field(default="", kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return self.index.size

    @property
    def state(self) -> State:
        """What a sampler of such samples walks on."""
        return self.signature.output.state

    def order(self, step: int, batch: int, seed: Sequence[int]) -> Labels:
        """Positions of the samples of a training step, (batch,): drawn at random, by (seed, step) alone.

        Args:
            step: of the run, from 0.
            batch: of all processes together.
            seed: whole numbers from 0.
        """
        return np.random.default_rng([*seed, step]).integers(len(self), size=batch)

    def announce(self, at: Labels) -> None:
        """Positions that come some steps later; nothing is to do for what lies on this machine."""

    def every(self, k: int) -> Self:
        """Every k-th sample."""
        return replace(self, index=self.index[::k], labels=self.labels[::k])

    def at(self, positions: Labels) -> Self:
        """Those at some positions of the split, as often as each is named."""
        return replace(self, index=self.index[positions], labels=self.labels[positions])

    def about(self, count: int) -> Self:
        """Every so many-th sample, so that about `count` are left, and no fewer where there are that many."""
        return self.every(max(len(self) // count, 1))

    def made_from(self, inputs: Sequence[Input]) -> Self:
        """The same samples, made from other inputs, whose numbers the labels are."""
        return replace(self, signature=Signature(inputs=tuple(inputs), output=self.signature.output))

    def of_signature(self, signature: Signature) -> Self:
        """The same samples, as a bundle describes them."""
        return replace(self, signature=signature)

    def __getitem__(self, i: Labels) -> tuple[Array, Labels]:
        """Samples (B, ...) as the source has them, channels first, and labels (B,) at positions i."""
        return self.rows[self.index[i]], self.labels[i]

    def states(self, values: Any, normal: Callable[..., Any]) -> Any:
        """Samples in what a sampler walks on, (B, *state).

        Args:
            values: a tensor on its device, of what the source gave, (B, ...).
            normal: draws unit noise, (B, *shape) for the shape it is called with.
        """
        del normal
        return values


def batches(samples: Samples, size: int) -> Iterator[tuple[Array, Labels]]:
    """All samples in order, `size` at a time.

    Args:
        samples: a split.
        size: the last batch may have fewer.

    Yields:
        Samples (B, ...) as the source has them, and labels (B,).
    """
    for start in range(0, len(samples), size):
        yield samples[np.arange(start, min(start + size, len(samples)))]


def digest(*parts: object) -> str:
    """One hash of arrays and of whatever else says what it is."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def classes(source: str, labels: Labels, names: Sequence[str] = ()) -> tuple[Input, ...]:
    """What labels, and the names of classes where there are some, say that samples are made from: two classes or nothing.

    Args:
        source: for the sentence.
        labels: of all samples, (N,).
        names: by number; where there are some, they count the classes.

    Returns:
        One input of labels; () for fewer than two classes.

    Raises:
        ValueError: for names that no bundle can have.
    """
    count = max(int(labels.max()) + 1, len(names))
    if count < 2:
        return ()
    try:
        check_class_names(tuple(names), count)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return (LabelInput(classes=count, names=tuple(names)),)


def positions(source: str, labels: Labels, split: Split) -> Labels:
    """Positions of a split: the last of every HELD_OUT samples of a class is held out, so both splits keep the balance.

    Args:
        source: for the sentence.
        labels: of all samples, (N,).
        split: train, held-out or all.

    Returns:
        In order, as many as the split has.

    Raises:
        ValueError: where that leaves none.
    """
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    begins = np.cumsum(counts) - counts
    order = np.argsort(members, kind="stable")
    rank = np.empty_like(labels)
    rank[order] = np.arange(labels.size) - begins[members[order]]  # within its class
    held_out = rank % HELD_OUT == HELD_OUT - 1
    index = np.arange(labels.size) if split == "all" else np.flatnonzero(held_out if split == "held-out" else ~held_out)
    if not index.size:
        raise ValueError(f"{source} leaves no {split} samples: it has {labels.size}, {HELD_OUT} per class are needed at least")
    return index

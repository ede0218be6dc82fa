"""Images that stay where they are: parquet files at a URL that fsspec knows, read a row group at a time, while they are needed.

The order is a function of (seed, step) alone, so a run goes on where it was, and any number of processes makes the batches of
one. What is kept in memory is a few row groups for each place in the batch.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.data import LABELS, Bytes, Images, Square, checked_labels, classes, digest, positions
from fewstep.manifest import Condition

__all__ = ["Stream", "is_url", "open_stream"]

READERS = 4  # threads
MAX_LANES = 32  # of a batch; a group for each, and the next, are in memory


class Group(NamedTuple):
    """A row group: the file it is in, its number there, and the position of its first row in the whole data set, how many."""

    file: str
    number: int
    begin: int
    rows: int


class RowGroups:
    """Decodes images of parquet files. Groups in use stay in memory, those that are announced are read by threads."""

    def __init__(self, files: Any, groups: Sequence[Group], column: str, resolution: int | None) -> None:
        self.files, self.groups, self.column = files, groups, column
        self.begins = [group.begin for group in groups]
        self.pool, self.lock = ThreadPoolExecutor(READERS, "fewstep-stream"), Lock()
        self.read: OrderedDict[int, Future[list[bytes]]] = OrderedDict()
        self.kept = 2
        self.square = Square.of(self._decoded(0), resolution)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Bytes:
        return np.stack([self.square.pixels(self._decoded(int(row))) for row in index])

    def group_of(self, row: int) -> int:
        """Which group a row is in."""
        return bisect_right(self.begins, row) - 1

    def announce(self, groups: Iterable[int], *, kept: int) -> None:
        """Begin to read groups. kept: how many stay in memory; those go first that were not asked for the longest."""
        self.kept = kept
        for group in groups:
            self._group(group)

    def _group(self, group: int) -> Future[list[bytes]]:
        with self.lock:
            if group not in self.read:
                self.read[group] = self.pool.submit(self._load, self.groups[group])
            self.read.move_to_end(group)
            while len(self.read) > self.kept:
                self.read.popitem(last=False)
            return self.read[group]

    def _load(self, group: Group) -> list[bytes]:
        import pyarrow.parquet

        with self.files.open(group.file, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=True).read_row_group(group.number, columns=[self.column])
        return [item["bytes"] for item in table[self.column].to_pylist()]

    def _decoded(self, row: int) -> Any:
        from PIL import Image, UnidentifiedImageError

        number = self.group_of(row)
        group = self.groups[number]
        encoded = self._group(number).result()[row - group.begin]
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                image.load()
                return image
        except (UnidentifiedImageError, OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"image {row - group.begin} of row group {group.number} of {group.file} is not readable ({error})"
            ) from None


@dataclass(frozen=True)
class Stream(Images):
    """A data set whose rows are taken in an order that reads every row group once in a while, instead of at random.

    A batch has lanes, as many as divide it and as there are groups for. A lane owns every so many-th of the shuffled groups and
    takes one after the other, in another order every time round, with their rows shuffled.
    """

    rows: RowGroups

    def order(self, step: int, batch: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
        """Positions of the images of a training step, (batch,), by (seed, step) alone."""
        lanes = self._lanes(tuple(seed), batch)
        each = batch // len(lanes)
        return np.array([lanes[i % len(lanes)].position(step * each + i // len(lanes)) for i in range(batch)])

    def announce(self, at: npt.NDArray[np.int64]) -> None:
        """Begin to read what positions need that come some steps later."""
        groups = {self.rows.group_of(int(row)) for row in self.index[at]}
        self.rows.announce(groups, kept=2 * len(groups) + 2)

    def _lanes(self, seed: tuple[int, ...], batch: int) -> list[Lane]:
        if (seed, batch) not in self._known:
            bounds = np.searchsorted(self.index, [*self.rows.begins, self.index[-1] + 1])
            spans = np.array([(low, high) for low, high in pairwise(bounds.tolist()) if low < high])
            shuffled = spans[np.random.default_rng([*seed, 0]).permutation(len(spans))]
            lanes = next(n for n in range(min(batch, len(spans), MAX_LANES), 0, -1) if batch % n == 0)
            self._known[seed, batch] = [Lane((*seed, 1, i), shuffled[i::lanes]) for i in range(lanes)]
        return self._known[seed, batch]

    @cached_property
    def _known(self) -> dict[tuple[tuple[int, ...], int], list[Lane]]:
        return {}


class Lane:
    """Spans of positions [begin, end), (n, 2), one after the other, again and again."""

    def __init__(self, seed: tuple[int, ...], spans: npt.NDArray[np.int64]) -> None:
        self.seed, self.spans, self.length = seed, spans, int((spans[:, 1] - spans[:, 0]).sum())
        self.round, self.ordered, self.ends = -1, spans, spans[:, 0]

    def position(self, number: int) -> int:
        """The number-th position of the lane."""
        turn, number = divmod(number, self.length)
        if turn != self.round:
            self.round = turn
            self.ordered = self.spans[np.random.default_rng([*self.seed, turn]).permutation(len(self.spans))]
            self.ends = np.cumsum(self.ordered[:, 1] - self.ordered[:, 0])
        at = int(np.searchsorted(self.ends, number, "right"))
        begin, end = map(int, self.ordered[at])
        return begin + _shuffled((*self.seed, turn, begin), end - begin)[number - int(self.ends[at]) + end - begin]


@lru_cache(4 * MAX_LANES)
def _shuffled(seed: tuple[int, ...], count: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return found


def is_url(source: str) -> bool:
    """Whether a source is streamed: s3://bucket/photos, hf://datasets/name, file:///data/photos."""
    return "://" in source


def open_stream(source: str, *, resolution: int | None = None, embeddings: Condition | None = None) -> Stream:
    """The training images of all parquet files below a URL, split as `open_images` splits a directory of them.

    Reads the files' footers, their labels and one image; others that are broken are found when it is their turn.
    resolution, embeddings: as for `open_images`. Raises ValueError or OSError for what cannot be read.
    """
    import pyarrow
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(source)
        sizes = {name: about["size"] for name, about in files.find(root, detail=True).items() if name.endswith(".parquet")}
        names = sorted(sizes)
        if not names:
            raise ValueError("there is no parquet file in it")
        groups, column, numbers = _footers(files, names)
    except (ImportError, pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{source} cannot be streamed: {' '.join(str(error).split())}") from None
    count = groups[-1].begin + groups[-1].rows
    labels = checked_labels(source, count, np.concatenate(numbers) if numbers else None)
    index = positions(source, labels, "train")
    rows = RowGroups(files, groups, column, resolution)
    sha256 = digest(rows.square, labels, groups, [sizes[name] for name in names])
    return Stream(source, rows.square.spec, embeddings or classes(labels), rows, index, labels[index], sha256=sha256)


def _footers(files: Any, names: Sequence[str]) -> tuple[list[Group], str, list[npt.NDArray[Any]]]:
    """All row groups, the column of images, and the labels of every file that has some."""
    import pyarrow
    import pyarrow.parquet

    groups: list[Group] = []
    labels: list[npt.NDArray[Any]] = []
    begin, image = 0, ""
    for name in names:
        with files.open(name, "rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            schema = parquet.schema_arrow
            image = next((field.name for field in schema if pyarrow.types.is_struct(field.type)), "")
            if not image or schema.field(image).type.get_field_index("bytes") < 0:
                raise ValueError(f"{name} has no image column, it has {schema.names}; store images as datasets.Image")
            for number in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(number).num_rows
                groups.append(Group(name, number, begin, rows))
                begin += rows
            if label := next((column for column in LABELS if column in schema.names), None):
                labels.append(parquet.read(columns=[label])[label].to_numpy())
    if not begin:
        raise ValueError("its files hold no images")
    return [group for group in groups if group.rows], image, labels

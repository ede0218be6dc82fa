"""Images that stay where they are: parquet files at a URL that fsspec knows, read a row group at a time, while they are needed.

The order is a function of (seed, step) alone, so a run goes on where it was, and any number of processes makes the batches of
one. What is kept in memory is a few row groups for each place in the batch.
"""

from __future__ import annotations

import logging
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

from fewstep.artifact.signature import Input, Signature
from fewstep.data.decode import VERSION, Facts, Square, decode
from fewstep.data.images import Bytes, Images, checked_labels, described, names_of
from fewstep.data.listing import shown
from fewstep.data.samples import classes, digest, positions
from fewstep.data.survey import loss_of
from fewstep.data.tables import Columns, is_parquet, label_values

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
        self.read: OrderedDict[int, Future[list[bytes | None]]] = OrderedDict()
        self.kept = 2
        self.told: set[str] = set()
        first = self._decoded(0)[1]
        self.square = Square.of(first, resolution)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Bytes:
        return np.stack([self._pixels(int(row)) for row in index])

    def _pixels(self, row: int) -> Bytes:
        picture, facts = self._decoded(row)
        if (loss := loss_of(facts, self.square)) and loss not in self.told:
            self.told.add(loss)
            logging.getLogger(__name__).warning("%s is %s; others that are so too are not named", self._name(row), loss)
        return self.square.pixels(picture)

    def group_of(self, row: int) -> int:
        """Which group a row is in."""
        return bisect_right(self.begins, row) - 1

    def announce(self, groups: Iterable[int], *, kept: int) -> None:
        """Begin to read groups. kept: how many stay in memory; those go first that were not asked for the longest."""
        self.kept = kept
        for group in groups:
            self._group(group)

    def _group(self, group: int) -> Future[list[bytes | None]]:
        with self.lock:
            if group not in self.read:
                self.read[group] = self.pool.submit(self._load, self.groups[group])
            self.read.move_to_end(group)
            while len(self.read) > self.kept:
                self.read.popitem(last=False)
            return self.read[group]

    def _load(self, group: Group) -> list[bytes | None]:
        import pyarrow.parquet

        with self.files.open(group.file, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=True).read_row_group(group.number, columns=[self.column])
        return [(item or {}).get("bytes") for item in table[self.column].to_pylist()]

    def _decoded(self, row: int) -> tuple[Any, Facts]:
        number = self.group_of(row)
        try:
            encoded = self._group(number).result()[row - self.groups[number].begin]
            if encoded is None:
                raise ValueError("it has no bytes of its own, and a stream opens no other files")
            return decode(encoded)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._name(row)} is not readable ({' '.join(str(error).split())})") from None

    def _name(self, row: int) -> str:
        group = self.groups[self.group_of(row)]
        return f"image {row - group.begin} of row group {group.number} of {shown(group.file)}"


@dataclass(frozen=True)
class Stream(Images):
    """A data set whose rows are taken in an order that reads every row group once in a while, instead of at random.

    A batch has lanes, as many as divide it and as there are groups for. A lane owns every so many-th of the shuffled groups and
    takes one after the other, in another order every time round, with their rows shuffled.

    Args:
        rows: what reads the row groups.
    """

    rows: RowGroups

    def order(self, step: int, batch: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
        """Positions of the images of a training step, (batch,), by (seed, step) alone.

        Args:
            step: of the run, from 0.
            batch: of all processes together.
            seed: whole numbers from 0.
        """
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


def open_stream(source: str, *, resolution: int | None = None, inputs: Sequence[Input] | None = None) -> Stream:
    """The training images of all parquet files below a URL, split as `open_images` splits a directory of them.

    Reads the files' footers, their labels and one image, whose size and mode all get; others that are broken are found when it
    is their turn.

    Args:
        source: a URL that fsspec knows.
        resolution: side in pixels; that of the first image unless given.
        inputs: as for `open_images`.

    Raises:
        ValueError: for files that cannot be read as images.
        OSError: where the URL cannot be reached.
    """
    import pyarrow
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(source)
        sizes = {name: about["size"] for name, about in files.find(root, detail=True).items()}
        names = sorted(name for name in sizes if is_parquet(name.removeprefix(root) or name))
        if not names:
            raise ValueError("there is no parquet file in it")
        groups, columns, values = _footers(files, names)
    except (ImportError, pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{source} cannot be streamed: {' '.join(str(error).split())}") from None
    count = groups[-1].begin + groups[-1].rows
    labels, called = checked_labels(source, count, label_values(values) if values else None, columns.names)
    index = positions(source, labels, "train")
    rows = RowGroups(files, groups, columns.image, resolution)
    named = names_of(labels, called)
    about: dict[str, Any] = {
        "sha256": digest(VERSION, rows.square, labels, groups, [sizes[name] for name in names]),
        "names": named,
        "notes": (described(source, labels, called), *_notes(rows.square, len(sizes) - len(names)), *columns.notes()),
    }
    made_from = tuple(inputs) if inputs else classes(source, labels, named)
    signature = Signature(inputs=made_from, output=rows.square.output)
    return Stream(source, signature, rows, index, labels[index], **about)


def _notes(square: Square, others: int) -> tuple[str, ...]:
    """What a stream cannot know beforehand, and what of it is not read."""
    known = f"they become {square.side}x{square.side} in {'color' if square.mode == 'RGB' else 'grey'}, as the first of them is"
    later = "no other was looked at yet: what they lose, and which cannot be read, is said when it is their turn"
    return f"{known}; {later}", *([f"not read: {others} files that are no parquet"] if others else [])


def _footers(files: Any, names: Sequence[str]) -> tuple[list[Group], Columns, list[Any]]:
    """All row groups, the columns, the same in all files, and the labels of every file where there are some."""
    import pyarrow.parquet

    groups: list[Group] = []
    labels: list[Any] = []
    schemas: dict[str, Any] = {}
    begin = 0
    for name in names:
        with files.open(name, "rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            schemas[name] = parquet.schema_arrow
            for number in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(number).num_rows
                groups.append(Group(name, number, begin, rows))
                begin += rows
            if label := Columns.of(name, schemas[name]).label:
                labels.append(parquet.read(columns=[label])[label])
    if not begin:
        raise ValueError("its files hold no images")
    return [group for group in groups if group.rows], Columns.common(schemas), labels

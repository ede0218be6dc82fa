"""Samples that are arrays, with names: .npz or .parquet, one file or a directory of them.

`values` (N, *axes, columns) are the samples, in the data's own units. Whole numbers called `labels` (N,) are classes; every
other array (N, ...) is an input of its own name. A file NAME.json beside NAME.npz, or signature.json in a directory, may name
axes, columns, units and classes, and say what means "none" for an input:

    {"axes": [{"name": "time", "unit": "0.1 s"}], "columns": [{"name": "x", "unit": "m"}, {"name": "y", "unit": "m"}],
     "classes": ["push", "pull"], "null": {"observation": "zeros"}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.draft import reason
from fewstep.artifact.signature import MAX_SIZE, NEGATIVE, ArrayInput, ArrayOutput, Axis, Column, Input, Signature
from fewstep.data.listing import shown
from fewstep.data.samples import Labels, Samples, Split, classes, digest, positions
from fewstep.system.arrays import read_arrays
from fewstep.system.extras import install
from fewstep.system.strict import Strict

__all__ = ["ArraySamples", "arrays_like", "is_arrays", "open_arrays"]

VALUES, LABELS, ABOUT = "values", "labels", "signature.json"
FILES = (".npz", ".parquet")
Array = npt.NDArray[Any]


class AxisName(Strict):
    """An axis of samples."""

    name: str
    unit: str = ""


class AboutArrays(Strict):
    """What numbers alone do not say. The last axis of `values` is that of the columns."""

    axes: list[AxisName] = Field(default=[])
    columns: list[AxisName] = Field(default=[])
    classes: list[str] = Field(default=[])
    null: dict[str, Literal["zeros"]] = Field(default={})


@dataclass(frozen=True)
class ArraySamples(Samples):
    """A split of arrays; rows are (N, *axes, columns) float32 in their own units."""

    def __getitem__(self, i: Labels) -> tuple[Array, Labels]:
        """Samples (B, columns, *axes), free of their columns' mean and deviation, and labels (B,) at positions i."""
        columns = self.signature.output.columns  # type: ignore[union-attr]
        mean, std = (np.array([getattr(column, key) for column in columns], np.float32) for key in ("mean", "std"))
        return np.ascontiguousarray(np.moveaxis((self.rows[self.index[i]] - mean) / std, -1, 1)), self.labels[i]


def is_arrays(path: Path) -> bool:
    """Whether a path is a file of arrays, or a directory with some."""
    if path.is_file():
        return path.suffix in FILES
    if any(path.glob("*.npz")):
        return True
    first = next(iter(sorted(path.glob("*.parquet"))), None)
    return first is not None and VALUES in _parquet_names(first)


def open_arrays(path: Path, split: Split = "train") -> ArraySamples:
    """Open a file or directory of arrays. Columns are freed of mean and deviation of the training split.

    Args:
        path: of the file or directory.
        split: train, held-out or all.

    Raises:
        FileNotFoundError: where a file is not there, or a directory has none of arrays.
        ValueError: where arrays do not go together or hold numbers that are not finite, or nothing is left for the split.
    """
    files, notes = _files(path)
    source, arrays, about = str(path), _joined(files), _about(path)
    values = _values(source, arrays.pop(VALUES))
    count = len(values)
    if other := next((name for name, array in arrays.items() if len(array) != count), None):
        raise ValueError(f"{path} has {count} {VALUES}, and {other} has shape {arrays[other].shape}; give a row for each")
    labels = _labels(source, arrays.get(LABELS), count, about)
    index = positions(source, labels, split)
    inputs = _inputs(source, arrays, labels, about)
    output = _output(source, values[positions(source, labels, "train")], about)
    by_rows = any(each.choices is None for each in inputs)
    numbers = np.arange(count) if by_rows else labels
    parts = [part for name in sorted(arrays) for part in (name, arrays[name].shape, arrays[name])]
    known: dict[str, Any] = {
        "arrays": {each.name: arrays[each.name] for each in inputs} if by_rows else {},
        "sha256": digest(values.shape, values, *parts, about),
        "names": tuple(about.classes),
        "notes": (_described(source, values, inputs, output), *notes),
    }
    try:
        signature = Signature(inputs=inputs, output=output)
    except ValidationError as error:
        raise ValueError(f"{source}: {reason(error)}") from None
    return ArraySamples(source, signature, values, index, numbers[index], **known)


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """Files of arrays, and lines for people."""
    if path.is_file():
        return [path], []
    there = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    files = [file for file in there if file.suffix in FILES]
    if not files:
        raise FileNotFoundError(f"{path} has no files of arrays; give .npz or .parquet with an array called {VALUES}")
    others = [file.name for file in there if file not in files and file.name != ABOUT]
    return files, [f"not read: {shown(', '.join(others))}; what arrays are is said in {ABOUT}"] if others else []


def arrays_like(bundle: Bundle, source: str, split: Split = "train") -> ArraySamples:
    """Open a source as `open_arrays` does, where a bundle makes samples of its kind.

    Args:
        bundle: whose signature they have, but for mean and deviation.
        source: path of a file or directory.
        split: train, held-out or all.

    Raises:
        FileNotFoundError: as `open_arrays` does.
        ValueError: where samples are of another kind, and as `open_arrays` does.
    """
    found = open_arrays(Path(source), split)
    if not bundle.manifest.signature.alike(found.signature):
        raise ValueError(f"{bundle.root.name} makes other samples than {source} holds; give some like those it learnt from")
    return found


def _joined(files: Sequence[Path]) -> dict[str, Array]:
    """Arrays of all files, joined row by row."""
    parts = [_parquet(file) if file.suffix == ".parquet" else read_arrays(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if VALUES not in part:
            raise ValueError(f"{file} has no array called {VALUES}, it has {', '.join(part) or 'none'}; samples have that name")
        if part.keys() != parts[0].keys():
            raise ValueError(f"{file} has other arrays than {files[0].name}; put them into directories of their own")
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise ValueError(f"the files of {files[0].parent} do not go together: {error}") from None


def _values(source: str, values: Array) -> npt.NDArray[np.float32]:
    if values.ndim < 3 or values.dtype.kind not in "fiu" or not values.size:
        found = f"{values.dtype} {values.shape}"
        raise ValueError(f"{source}: {VALUES} are numbers (N, *axes, columns), with one axis or more, got {found}")
    with np.errstate(over="ignore"):  # what is beyond float32 is not finite then
        return _finite(source, VALUES, values.astype(np.float32, copy=False))


def _finite(source: str, name: str, values: Array) -> Array:
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise ValueError(f"{source}: {name} of {int(bad.sum())} samples are not finite, the first is row {int(bad.argmax())}")
    return values


def _labels(source: str, labels: Array | None, count: int, about: AboutArrays) -> Labels:
    if labels is None:
        if about.classes:
            raise ValueError(f"{source}: classes are named, and there is no array {LABELS} that says which ones; add it")
        return np.zeros(count, np.int64)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"{source}: {LABELS} are whole numbers from 0, one for each sample, got {labels.dtype} {labels.shape}")
    most = len(about.classes) or MAX_SIZE
    if wrong := [label for label in (labels.min(), labels.max()) if not 0 <= label < most]:
        raise ValueError(f"{source}: {LABELS} has {wrong[0]}, which is none of the classes 0 to {most - 1}; number them from 0")
    return labels.astype(np.int64)


def _inputs(source: str, arrays: Mapping[str, Array], labels: Labels, about: AboutArrays) -> tuple[Input, ...]:
    """An input for every array, in the order of their names; classes first."""
    found = list(classes(source, labels, about.classes)) if LABELS in arrays else []
    for name in sorted(arrays.keys() - {LABELS}):
        if arrays[name].dtype.kind not in "fiu":
            raise ValueError(f"{source}: the array {name} holds numbers, got {arrays[name].dtype}")
        if name.startswith(NEGATIVE):
            raise ValueError(f"{source}: {name} is no name of an input, but of what means none; give both with --inputs")
        _finite(source, name, arrays[name])
        try:
            found.append(ArrayInput(name=name, shape=arrays[name].shape[1:], null=about.null.get(name)))
        except ValidationError as error:
            raise ValueError(f"{source}: the array {name} cannot be an input: {reason(error)}") from None
    if unknown := sorted(about.null.keys() - (arrays.keys() - {LABELS})):
        raise ValueError(f"{source}: null is said of {unknown[0]}, and no input is an array of that name; leave it out")
    return tuple(found)


def _output(source: str, train: npt.NDArray[np.float32], about: AboutArrays) -> ArrayOutput:
    *sides, count = train.shape[1:]
    axes = about.axes or [AxisName(name=f"axis_{i}") for i in range(len(sides))]
    columns = about.columns or [AxisName(name=f"column_{i}") for i in range(count)]
    if (len(axes), len(columns)) != (len(sides), count):
        raise ValueError(
            f"{source}: {VALUES} have {len(sides)} axes and {count} columns, and {len(axes)} and {len(columns)} are named"
        )
    flat = train.reshape(-1, count).astype(np.float64)
    # A column that is constant stays as it is; its deviation need not come out as 0.
    mean, std = flat.mean(0), np.where(flat.max(0) > flat.min(0), flat.std(0), 1.0)
    try:
        return ArrayOutput(
            axes=tuple(Axis(name=a.name, size=side, unit=a.unit) for a, side in zip(axes, sides, strict=True)),
            columns=tuple(
                Column(name=c.name, unit=c.unit, mean=float(m), std=float(s))
                for c, m, s in zip(columns, mean, std, strict=True)
            ),
        )
    except ValidationError as error:
        raise ValueError(f"{source}: {VALUES} cannot be an output: {reason(error)}") from None


def _about(path: Path) -> AboutArrays:
    file = path.with_suffix(".json") if path.is_file() else path / ABOUT
    if not file.is_file():
        return AboutArrays()
    try:
        return AboutArrays.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file} does not say what arrays are: {reason(error)}") from None


def _described(source: str, values: Array, inputs: Sequence[Input], output: ArrayOutput) -> str:
    shape = " x ".join([*(f"{axis.name} {axis.size}" for axis in output.axes), f"{len(output.columns)} columns"])
    made = "; ".join(f"{each.name}: {each.meaning}" for each in inputs)
    return f"{source}: {len(values)} samples of {shape}" + (f", made from {made}" if made else "")


def _parquet_names(path: Path) -> list[str]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"reading parquet needs pyarrow; {install('train')}") from None
    try:
        names: list[str] = pyarrow.parquet.read_schema(path).names
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not readable ({' '.join(str(error).split())[:200]})") from None
    return names


def _parquet(path: Path) -> dict[str, Array]:
    """Columns of numbers, or of nested lists of them of one shape."""
    names = _parquet_names(path)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    try:
        return {name: _column(table[name].combine_chunks()) for name in names}
    except (ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} has a column that is no array ({' '.join(str(error).split())[:200]})") from None


def _column(column: Any) -> Array:
    import pyarrow.types as types

    shape = [len(column)]
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        flat = column.flatten()
        each, rest = divmod(len(flat), max(len(column), 1))
        if rest or set(column.value_lengths().to_pylist()) != {each}:
            raise ValueError("its lists have several lengths")
        shape.append(each)
        column = flat
    if column.null_count:
        raise ValueError("it has rows without a number")
    found: Array = column.to_numpy(zero_copy_only=False)
    return found.reshape(shape)

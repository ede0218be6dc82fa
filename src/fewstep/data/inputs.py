"""Arrays that samples are made from, as files and data sets have them: which inputs they are, whether they fit a signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.artifact.signature import NEGATIVE, ArrayInput, Input

__all__ = ["Arrays", "checked_arrays", "in_rows", "inputs_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


def inputs_of(arrays: Arrays) -> tuple[Input, ...]:
    """What samples are made from where these arrays are given, (N, ...) by name; negative_NAME is what means "none" for NAME.

    Raises ValueError where a negative one has nothing it is of, or other shapes.
    """
    names = [name for name in arrays if not name.startswith(NEGATIVE)]
    inputs = tuple(
        ArrayInput(name=name, shape=tuple(arrays[name].shape[1:]), null="given" if NEGATIVE + name in arrays else None)
        for name in names
    )
    checked_arrays(inputs, arrays)
    return inputs


def in_rows(inputs: Sequence[Input]) -> list[Input]:
    """Inputs whose values come as rows of arrays: all, unless every one has finitely many values, which can be drawn."""
    return [] if all(each.choices is not None for each in inputs) else list(inputs)


def checked_arrays(inputs: Sequence[Input], arrays: Arrays | None) -> dict[str, npt.NDArray[Any]]:
    """Arrays by the names of inputs, (N, ...), and those that mean "none", negative_NAME, (1, ...), in a graph's types.

    Args:
        inputs: of the signature.
        arrays: by name, (N, ...) and (1, ...).

    Returns:
        The same, converted; empty where no input needs any.

    Raises:
        ValueError: where there are none and some are needed, or they have other names, shapes or kinds, or hold numbers that
            are not finite.
    """
    tensors = [tensor for each in in_rows(inputs) for tensor in (each.tensor, each.null_tensor) if tensor]
    given = dict(arrays or {})
    if given.keys() != (wanted := {tensor.name for tensor in tensors}):
        if not wanted:
            raise ValueError(f"this bundle takes no arrays, got {', '.join(sorted(given))}; leave them out")
        raise ValueError(
            f"samples of this bundle are made from arrays, which cannot be drawn at random; give the tensors "
            f"{', '.join(sorted(wanted))}, got {', '.join(sorted(given)) or 'none'}"
        )
    for name, shape, dtype in tensors:
        found = given[name]
        if tuple(found.shape[1:]) != shape or not len(found):
            raise ValueError(f"the array {name} has shape (N, {', '.join(map(str, shape))}), got {tuple(found.shape)}")
        if found.dtype.kind not in ("iu" if dtype == "int64" else "fiu"):
            raise ValueError(f"the array {name} holds {dtype} numbers, got {found.dtype}")
        given[name] = found.astype(dtype, copy=False)
        if not np.isfinite(given[name]).all():
            raise ValueError(f"the array {name} has numbers that are not finite; nothing can be made from them")
    counts = {len(given[each.name]) for each in in_rows(inputs)}
    if len(counts) > 1:
        raise ValueError(f"every sample has a row of every array, got {sorted(counts)} of them")
    return given

"""Arrays as JSON: float32 in nine digits, which give the same number back."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.artifact.signature import TensorSpec

__all__ = ["json_bytes", "listed", "nested"]

PIECE = 1 << 15  # numbers; nothing else runs in Python while one piece is written
BYTES = {"uint8": len("255,"), "float32": len("-1.23456789e-10,")}
BRACKETS = len("[],")


def json_bytes(tensor: TensorSpec, count: int) -> int:
    """About how many bytes of JSON so many samples are, at most.

    Args:
        tensor: of a sample, with one axis at least.
        count: of samples.
    """
    columns = tensor.shape[-1]
    return count * (prod(tensor.shape) * BYTES[tensor.dtype] + prod(tensor.shape) // columns * BRACKETS)


def listed(array: npt.NDArray[Any]) -> Iterator[bytes]:
    """All numbers one after the other, with commas between, in pieces that a comma joins."""
    flat = array.reshape(-1)
    for at in range(0, len(flat), PIECE):
        values = flat[at : at + PIECE].tolist()
        yield (",".join([_form(array)] * len(values)) % tuple(values)).encode()


def nested(array: npt.NDArray[Any]) -> str:
    """Lists in lists, as the shape has them; two axes at least."""
    row = f"[{','.join([_form(array)] * array.shape[-1])}]"
    texts = [row % tuple(values) for part in array.reshape(-1, array.shape[-1]) for values in [part.tolist()]]
    for size in reversed(array.shape[:-1]):
        texts = [f"[{','.join(texts[i : i + size])}]" for i in range(0, len(texts), size)]
    return texts[0]


def _form(array: npt.NDArray[Any]) -> str:
    return "%.9g" if np.issubdtype(array.dtype, np.floating) else "%d"

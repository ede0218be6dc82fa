"""Tensors of graphs, and how large a manifest may say that they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy.typing as npt
from pydantic import Field

__all__ = ["MAX_RANK", "MAX_SIDE", "MAX_SIZE", "Array", "Name", "Shape", "Side", "TensorSpec", "Unit"]

# What a manifest says must not make a reader take all memory.
MAX_SIDE = 1 << 14
MAX_SIZE = 1 << 20  # classes, tokens, numbers in a vector
MAX_RANK = 6
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Shape = Annotated[tuple[Annotated[int, Field(gt=0, le=MAX_SIZE)], ...], Field(max_length=MAX_RANK, fail_fast=True)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Unit = Annotated[str, Field(max_length=32)]
Array: TypeAlias = npt.NDArray[Any]


class TensorSpec(NamedTuple):
    """A tensor of a graph. shape: of one sample, without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int64", "float32", "uint8"]

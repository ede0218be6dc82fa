"""What a model takes and gives, described once: the server, its page and Triton read it from here."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fewstep.artifact.signature import Signature, TensorSpec

__all__ = ["DATATYPES", "Described", "described_inputs", "described_output"]

# What the Open Inference Protocol calls them, https://github.com/kserve/open-inference-protocol.
DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "UINT64": np.dtype("<u8"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Described(NamedTuple):
    """A tensor of a request or of its answer.

    Args:
        name: what it is called everywhere.
        datatype: one of DATATYPES.
        shape: of one sample, without the batch.
        meaning: what its numbers are, in words.
        optional: whether it may be left out, which means "none".
        choices: how many different values it has; None for numbers without end.
        names: what these are called, where they have names.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    meaning: str
    optional: bool = False
    choices: int | None = None
    names: tuple[str, ...] = ()


SEEDS = Described("seeds", "UINT64", (), "a whole number for each sample; the same one makes the same sample")


def described_inputs(signature: Signature, *, guided: bool, by_graph: bool = False) -> list[Described]:
    """Seeds, and what is taken besides; guided, also what means "none", where that comes with every call.

    Args:
        signature: of the bundle.
        guided: whether any row of the plan is.
        by_graph: as graphs take it. They know a class too many, for none; a request leaves its classes out for that.

    Returns:
        Seeds first, then inputs in their order, then what means "none".
    """
    found = [SEEDS]
    for each in signature.inputs:
        names = tuple(each.called(np.arange(each.choices))) if each.choices else ()
        meaning = f"0 to {each.choices - 1} for a class" if each.choices and not by_graph else each.meaning
        optional = each.null_constant is not None and not by_graph
        found.append(_described(each.tensor, meaning, optional, each.choices, names))
    nulls = [(each.null_tensor, each.name) for each in signature.inputs if guided and each.null_tensor]
    return found + [_described(tensor, f"what means none in place of {name}") for tensor, name in nulls]


def described_output(signature: Signature) -> Described:
    """What a call gives."""
    return _described(signature.output.tensor, signature.output.meaning)


def _described(tensor: TensorSpec, meaning: str, *more: Any) -> Described:
    return Described(tensor.name, NAMES[np.dtype(tensor.dtype)], tensor.shape, meaning, *more)

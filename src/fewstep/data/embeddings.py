"""Conditions of a network that makes images from embeddings: tensors by name, of some prompts and of none. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifact.signature import NEGATIVE, ArrayInput, Input

__all__ = ["checked_arrays", "inputs_of", "read_embeddings"]


def read_embeddings(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError for one that is not there or not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a safetensors file with the embeddings of some prompts")
    try:
        return load_file(path)
    except Exception as error:  # of whatever kind safetensors raises for bytes it does not expect
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from None


def inputs_of(arrays: Mapping[str, Tensor]) -> tuple[ArrayInput, ...]:
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


def checked_arrays(inputs: Sequence[Input], arrays: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Arrays by the names of inputs, (N, ...), and those that mean "none", negative_NAME, (1, ...), as they are.

    Raises ValueError where there are none and some are needed, or they have other names or shapes.
    """
    wanted = {each.name: each.shape for each in inputs if isinstance(each, ArrayInput)}
    wanted |= {each.null_tensor.name: each.null_tensor.shape for each in inputs if each.null_tensor}
    given = dict(arrays or {})
    if given.keys() != wanted.keys():
        if not wanted:
            raise ValueError(f"this bundle takes no arrays, got {', '.join(sorted(given))}; leave them out")
        raise ValueError(
            f"samples of this bundle are made from arrays, which cannot be drawn at random; give the tensors "
            f"{', '.join(sorted(wanted))}, got {', '.join(sorted(given)) or 'none'}"
        )
    for name, shape in wanted.items():
        if tuple(given[name].shape[1:]) != shape or not len(given[name]):
            raise ValueError(f"the array {name} has shape (N, {', '.join(map(str, shape))}), got {tuple(given[name].shape)}")
    counts = {len(given[each.name]) for each in inputs if isinstance(each, ArrayInput)}
    if len(counts) > 1:
        raise ValueError(f"every sample has a row of every array, got {sorted(counts)} of them")
    return given

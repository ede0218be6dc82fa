"""Conditions of a network that makes images from embeddings: tensors by name, of some prompts and of none. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifact.spec import Condition

__all__ = ["checked_embeddings", "condition_of", "read_embeddings"]


def read_embeddings(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError for one that is not there or not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a safetensors file with the embeddings of some prompts")
    try:
        return load_file(path)
    except Exception as error:  # of whatever kind safetensors raises for bytes it does not expect
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from None


def condition_of(embeddings: Mapping[str, Tensor]) -> Condition:
    """What images are made from where prompts have these embeddings. Raises ValueError where they are none of a network's."""
    shapes = {name: tuple(values.shape) for name, values in embeddings.items()}
    texts, pooled = shapes.get("embeddings", ()), shapes.get("pooled", (0, 0))
    if len(texts) != 3 or len(pooled) != 2:
        raise ValueError(f"prompts are embeddings (N, tokens, width) and, maybe, pooled (N, width), got {shapes}")
    condition = Condition(kind="embeddings", tokens=texts[1], width=texts[2], pooled=pooled[1])
    checked_embeddings(condition, embeddings)
    return condition


def checked_embeddings(condition: Condition, embeddings: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Embeddings by the names of the condition, (N, ...), and those that mean "none", null_..., (1, ...), as they are.

    {} for other kinds of conditions.

    Raises ValueError where there are none and some are needed, or they have other names or shapes.
    """
    if condition.kind != "embeddings":
        if embeddings:
            raise ValueError("this bundle makes images from no embeddings; leave them out")
        return {}
    given = dict(embeddings or {})
    wanted = {spec.name: spec.shape for spec in (*condition.inputs(), *condition.null_inputs())}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"images of this bundle are made from embeddings, which cannot be drawn at random; give the tensors "
            f"{', '.join(sorted(wanted))}, got {', '.join(sorted(given)) or 'none'}"
        )
    for name, shape in wanted.items():
        if tuple(given[name].shape[1:]) != shape or not len(given[name]):
            raise ValueError(
                f"the embeddings {name} have shape (N, {', '.join(map(str, shape))}), got {tuple(given[name].shape)}"
            )
    counts = {len(given[spec.name]) for spec in condition.inputs()}
    if len(counts) > 1:
        raise ValueError(f"every prompt has its embeddings and its pooled vector, got {sorted(counts)} of them")
    return given

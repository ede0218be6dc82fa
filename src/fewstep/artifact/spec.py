"""Words that several parts of a manifest share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

__all__ = ["MIXED_PRECISIONS", "Digest", "Precision", "refuse_mixed_precision", "refuse_other_words"]

# What the network's layers compute in; the sampler's state is fp32 always. int8 leaves the rest in fp32 (CPUs), int8-fp16 and
# fp8 leave it in fp16 (GPUs).
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MIXED_PRECISIONS = ("auto", "bf16", "fp16", "no")  # what networks compute in while they learn


def refuse_mixed_precision(word: str) -> None:
    """Raises ValueError for what networks do not compute in while they learn."""
    if word not in MIXED_PRECISIONS:
        raise ValueError(f"networks compute in bf16, fp16, with no in fp32, or with auto in what is faster here, got {word!r}")


def refuse_other_words(what: str, words: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError unless words are a list of those that are known.

    Args:
        what: one of them is called.
        words: that are given.
        known: all there are.
    """
    for word in [words] if isinstance(words, str) else words:
        if word not in known:
            raise ValueError(f"{what} is one of {', '.join(known)}, got {word!r}")
    if isinstance(words, str):
        raise ValueError(f"there may be several of what {what} says, so give a list: [{words!r}]")

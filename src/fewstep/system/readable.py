"""Files that nobody vouches for: libraries raise whatever comes to their mind about bytes that are not what they expect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["readable"]

MAX_REASON = 200  # characters of what a library says


@contextmanager
def readable(what: str, way_out: str) -> Iterator[None]:
    """Turn whatever reading a file raises into a ValueError of one sentence: what cannot be read, why, and the way out.

    Args:
        what: the file, in words.
        way_out: what to do, as the end of the sentence.

    Raises:
        ValueError: for whatever was raised in the block.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_REASON].rstrip(". ")
        raise ValueError(f"{what} cannot be read ({reason or type(error).__name__}); {way_out}") from error

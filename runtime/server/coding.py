"""Bodies in gzip and deflate, RFC 9110 section 8.4: read in pieces, so that what inflates has a limit, and written."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, cast, get_args

__all__ = ["Coding", "Inflated", "accepted", "deflated", "known"]

Coding = Literal["gzip", "deflate"]
WINDOW: dict[Coding, int] = {"gzip": 31, "deflate": 15}  # zlib's window bits, which choose the frame too
PIECE_BYTES = 1 << 20
LEVEL = 1  # images are as good as noise to it


def known(name: str) -> Coding | None:
    """The coding that a Content-Encoding names, None for no coding. Raises ValueError for another."""
    name = name.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in get_args(Coding):
        raise ValueError(f"a body is sent as it is, or in gzip or deflate, got {name[:80]!r}")
    return cast(Coding, name)


def accepted(header: str) -> Coding | None:
    """The coding that an Accept-Encoding likes best; None where it would rather have none."""
    likes: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, quality = part.partition(";")
        try:
            likes[name.strip()] = float(quality.replace(" ", "").removeprefix("q=") or 1)
        except ValueError:
            continue
    found = [coding for coding in get_args(Coding) if likes.get(coding, 0) > 0]
    best = max(found, key=lambda coding: likes[coding], default=None)
    return None if best is None or likes.get("identity", 0) >= likes[best] else best


def deflated(parts: Sequence[bytes | memoryview], coding: Coding) -> bytes:
    """Parts as one body.

    Args:
        parts: in their order.
        coding: of the body.
    """
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW[coding])
    return b"".join([*map(stream.compress, parts), stream.flush()])


class Inflated:
    """A body, piece by piece. Raises ValueError where it is not in its coding, or more than one stream."""

    def __init__(self, body: bytes | bytearray, coding: Coding) -> None:
        self._left, self._coding = body, coding
        self._stream = zlib.decompressobj(WINDOW[coding])

    def piece(self) -> bytes:
        """The next bytes, none at the end."""
        stream = self._stream
        try:
            found = b"" if stream.eof else stream.decompress(self._left, PIECE_BYTES)
        except zlib.error:
            raise ValueError(f"the body is not {self._coding}") from None
        self._left = stream.unconsumed_tail
        if not found and not stream.eof:
            raise ValueError(f"the body ends before its {self._coding} stream does")
        if stream.unused_data:
            raise ValueError(f"the body has {len(stream.unused_data)} bytes behind its {self._coding} stream")
        return found

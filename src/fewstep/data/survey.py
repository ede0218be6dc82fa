"""A look at every image before anything trains on it: what cannot be read is refused, what will be lost is counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.data.decode import Facts, Square, Traits, decode
from fewstep.data.listing import shown
from fewstep.data.seen import ROW, Seen
from fewstep.system.cores import usable_cores
from fewstep.system.progress import Track, silent

__all__ = ["Decoded", "Encoded", "Files", "file_content", "loss_of", "losses", "square_of", "survey"]

THREADS = min(usable_cores(), 8)
QUICK = 500  # images are looked at before one could read that they are
PART = 64  # images that a thread takes at once
NAMED = 5
MAX_BYTES = 1 << 30  # of a file


class Encoded(Protocol):
    """Images as bytes."""

    def __len__(self) -> int: ...

    def content(self, i: int) -> bytes:
        """The bytes of an image. Raises OSError or ValueError for one that is not there, or not to be read."""

    def name(self, i: int) -> str:
        """What to call it in a sentence."""


class Files:
    """Files by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, i: int) -> bytes:
        return file_content(self.paths[i])

    def name(self, i: int) -> str:
        return shown(str(self.paths[i]))


def file_content(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError for what is none, and for one beyond all measure."""
    if not path.is_file():
        raise ValueError("it is not a file, or a link that leads nowhere")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
    return path.read_bytes()


class Decoded:
    """Rows of Images: decoded when they are asked for, all to one size and mode."""

    def __init__(self, encoded: Encoded, square: Square) -> None:
        self.encoded, self.square = encoded, square

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.stack([self._pixels(int(i)) for i in index])

    def _pixels(self, i: int) -> npt.NDArray[np.uint8]:
        try:
            return self.square.pixels(decode(self.encoded.content(i))[0])
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.encoded.name(i)} was an image when it was opened, and is not any more ({error})") from None


class _Broken(NamedTuple):
    name: str
    reason: str


def survey(source: str, encoded: Encoded, *, track: Track = silent) -> npt.NDArray[np.void]:
    """Hash and facts of every image, (N,) of ROW. Only those are decoded whose bytes no run has seen before.

    Args:
        source: whose cache is read and kept.
        encoded: its images.
        track: shows progress, of more than QUICK images.

    Raises:
        ValueError: with the names of those that cannot be read.
    """
    seen = Seen(source)
    parts, follow = range(-(-len(encoded) // PART)), track if len(encoded) > QUICK else silent

    def look(part: int) -> list[Any]:
        return [_look(encoded, i, seen) for i in range(part * PART, min((part + 1) * PART, len(encoded)))]

    with ThreadPoolExecutor(THREADS, "fewstep-survey") as pool:
        looked = pool.map(look, parts)
        found = [row for _ in follow(parts, f"look at {source}") for row in next(looked)]
    broken = [row for row in found if isinstance(row, _Broken)]
    rows = np.array([row for row in found if not isinstance(row, _Broken)], ROW)
    seen.keep(rows)
    if broken:
        others = f", nor are {len(broken) - 1} others, such as {broken[1].name} ({broken[1].reason})" if broken[1:] else ""
        raise ValueError(f"{broken[0].name} is not a readable image ({broken[0].reason}){others}; repair or remove them")
    return rows


def _look(encoded: Encoded, i: int, seen: Seen) -> tuple[bytes, int, int, int] | _Broken:
    try:
        content = encoded.content(i)
        key = hashlib.sha256(content).digest()
        return (key, *(seen.facts.get(key) or decode(content)[1]))
    except (OSError, ValueError) as error:
        return _Broken(encoded.name(i), shown(" ".join(str(error).split())))


def square_of(rows: npt.NDArray[np.void], resolution: int | None) -> Square:
    """What all images become: grey where all are, with the side of the smallest unless another is asked for.

    Args:
        rows: of `survey`, (N,).
        resolution: side in pixels.
    """
    side = int(np.minimum(rows["width"], rows["height"]).min())
    return Square.of(Facts(side, side, int(np.bitwise_or.reduce(rows["traits"]))), resolution)


LOST = {
    Traits.TRANSPARENT: "transparent, laid on white",
    Traits.DEEP: "of more than 8 bits a channel, of which the upper 8 are kept",
    Traits.CMYK: "in CMYK, made RGB without its profile",
    Traits.FRAMES: "of several frames or pages, of which the first is taken",
    Traits.PROFILE: "with a color profile other than sRGB, which is not applied",
}


def _lost(facts: Facts, square: Square) -> list[str]:
    """What an image loses, or gets that it had not."""
    said = [text for trait, text in LOST.items() if facts.traits & trait]
    if bool(facts.traits & Traits.COLOR) != (square.mode == "RGB"):
        said.append("in color, made grey" if square.mode == "L" else "grey, among others in color")
    if facts.width != facts.height:
        said.append("cut to their central square")
    short = min(facts.width, facts.height)
    return [*said, *(["reduced"] if short > square.side else []), *(["enlarged"] if short < square.side else [])]


def losses(rows: npt.NDArray[np.void], square: Square, resolution: int | None) -> tuple[str, ...]:
    """Lines that say what becomes of the images, with counts.

    Args:
        rows: of `survey`, (N,).
        square: what images become.
        resolution: the side that was asked for, if any.
    """
    alike = Counter(rows[list(Facts._fields)].tolist())
    counts: Counter[str] = Counter()
    for facts, count in alike.items():
        counts.update(dict.fromkeys(_lost(Facts(*facts), square), count))
    sides = {min(width, height) for width, height, _ in alike}
    asked = "" if resolution or len(sides) == 1 else ", the smallest one's side (--resolution chooses another)"
    said = "; ".join(f"{count} {text}" for text, count in sorted(counts.items()))
    copies = len(rows) - len(set(rows["sha256"].tolist()))
    lines = [f"they become {square.side}x{square.side}{asked}: {said}"] if said else []
    return (*lines, *([f"{copies} are byte for byte copies of others"] if copies else []))


def loss_of(facts: Facts, square: Square) -> str:
    """What becomes of one image, in words; "" where it stays as it is.

    Args:
        facts: of the image.
        square: what it becomes.
    """
    return ", ".join(_lost(facts, square))

"""The bytes of one file as a picture, the same for folders, data sets and streams. Needs Pillow.

A picture is as it is meant to be seen: upright, 8 bits a channel, grey or RGB, on white where it is transparent.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.artifact.signature import ImageOutput

__all__ = ["FORMATS", "SUFFIXES", "VERSION", "Facts", "Square", "Traits", "decode"]

VERSION = 1  # of what becomes of a file; a change makes other images of the same bytes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # none that starts a program, as PostScript does
SUFFIXES = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"))
MAX_PIXELS = 1 << 27  # 512 MB while it is decoded


class Traits(IntFlag):
    """What a file shows, and what of it goes: each but the first is a loss."""

    COLOR = 1
    TRANSPARENT = 2
    DEEP = 4
    CMYK = 8
    FRAMES = 16
    PROFILE = 32


class Facts(NamedTuple):
    """Of an upright picture: sides in pixels, and its Traits."""

    width: int
    height: int
    traits: int


@dataclass(frozen=True)
class Square:
    """What all images of a source become: squares of one side, in one mode, L or RGB.

    Args:
        mode: L or RGB.
        side: in pixels.
    """

    mode: str
    side: int

    @classmethod
    def of(cls, picture: Facts, side: int | None) -> Square:
        """As a picture is, in another size where one is asked for.

        Args:
            picture: or what stands for all of them.
            side: in pixels; the shorter one of the picture unless given.
        """
        return cls("RGB" if picture.traits & Traits.COLOR else "L", side or min(picture.width, picture.height))

    def pixels(self, picture: Any) -> npt.NDArray[np.uint8]:
        """A decoded picture cropped to the centre, resized: (side, side, C)."""
        from PIL import ImageOps

        square = ImageOps.fit(picture.convert(self.mode), (self.side, self.side))
        return np.asarray(square, dtype=np.uint8).reshape(self.side, self.side, -1)

    @property
    def output(self) -> ImageOutput:
        """What a model of them gives."""
        return ImageOutput(channels=1 if self.mode == "L" else 3, height=self.side, width=self.side)


def decode(content: bytes) -> tuple[Any, Facts]:
    """The first picture in a file, a PIL image of mode L or RGB, and what it took to make it one.

    Raises ValueError with the reason for what cannot be read, or not rightly.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels are more than {MAX_PIXELS}; make it smaller")
            raw = _raw_mode(opened)
            opened.load()
            _refuse_misread(opened, raw)
            found = _traits(opened, raw)
            ImageOps.exif_transpose(opened, in_place=True)
            picture, transparent = _on_white(_eight_bits(opened, raw), grey=raw.startswith("LA"))
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}" if content else "it is empty") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    found |= Traits.TRANSPARENT if transparent else Traits(0)
    found |= Traits.COLOR if picture.mode == "RGB" else Traits(0)
    return picture, Facts(picture.width, picture.height, int(found))


def _raw_mode(opened: Any) -> str:
    """How pixels lie in the file, such as RGB;16B; nothing where Pillow does not say."""
    arguments = opened.tile[0][3] if opened.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _bits(raw: str) -> int:
    """Bits a channel that a raw mode stands for, where they are more than 8. BGR;16 is a pixel of 16 bits in a BMP."""
    found = None if raw.startswith("BGR") else re.search(r";(12|16)", raw)
    return int(found[1]) if found else 8


def _traits(image: Any, raw: str) -> Traits:
    found = Traits(0)
    if _bits(raw) > 8:
        found |= Traits.DEEP
    if image.mode == "CMYK":
        found |= Traits.CMYK
    if getattr(image, "is_animated", False):
        found |= Traits.FRAMES
    profile = image.info.get("icc_profile") or b""
    if profile and image.mode != "CMYK" and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
        found |= Traits.PROFILE
    return found


def _refuse_misread(image: Any, raw: str) -> None:
    """Raises ValueError for what Pillow opens and shows wrongly."""
    deep = _bits(raw) > 8
    if image.mode in ("I", "F"):
        raise ValueError("its numbers do not say what is black and what white; save it with 8 or 16 bits a channel")
    if deep and image.mode == "RGB" and "transparency" in image.info:
        raise ValueError("its transparent color has 16 bits, which Pillow misreads; save it with an alpha channel")
    if deep and image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(262) == 0:
        raise ValueError("its 16 bits are 0 where it is white, which Pillow misreads; save it as PNG")


def _eight_bits(image: Any, raw: str) -> Any:
    """Grey of 12 or 16 bits as its upper 8: of color, Pillow itself keeps those."""
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    small = Image.fromarray((values >> (_bits(raw) - 8)).astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        small.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return small


def _on_white(image: Any, *, grey: bool) -> tuple[Any, bool]:
    """In mode L or RGB, and whether anything shines through. grey: an RGBA image is a grey one with alpha in truth."""
    from PIL import Image

    mode = "L" if grey or image.mode in ("1", "L", "LA") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode), False
    whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    white = Image.new(mode, whole.size, "white")
    white.paste(whole.convert(mode), mask=alpha)
    return white, alpha.getextrema()[0] < 255

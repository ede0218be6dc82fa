"""Emoji in three styles, drawn alike: 64x64, RGB, on white, and of one size. The flat ones need resvg-py."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from packages import COMPONENTS, FLAGS, FLAT, NOTO, THREE_D, Codes, Word, codes, read
from PIL import Image, ImageOps

__all__ = ["SIDE", "Draw", "framed", "pictures"]

SIDE = 64
LARGE = 256  # side at which drawings are rendered before they are reduced
INK = 16  # alpha above which a pixel counts as drawn on; shadows end in less
# Most emoji are 62 of 64 pixels wide or high in Noto, 56 in the other two.
SCALE = {"noto": 1.0, "3d": 62 / 56, "flat": 62 / 56}

LIGHT, MEDIUM_LIGHT, MEDIUM, MEDIUM_DARK, DARK = TONES = range(0x1F3FB, 0x1F400)
# What files of the 3d package show, beside the flat pictures of the same people: medium-light and medium the other way round,
# but for technologists and couples; one emoji with all tones astray; deaf men for deaf women.
SWAPPED = {MEDIUM_LIGHT: MEDIUM, MEDIUM: MEDIUM_LIGHT}
UNSWAPPED = {0x1F4BB, 0x1F46B, 0x1F46C, 0x1F46D, 0x1F48F, 0x1F491, 0x1F91D, 0x2764}  # laptop, the couples, and what joins two
MOUNTAIN_BIKING, DEAF = (0x1F6B5,), 0x1F9CF
ASTRAY = {LIGHT: DARK, MEDIUM_LIGHT: MEDIUM, MEDIUM: MEDIUM_DARK, MEDIUM_DARK: MEDIUM_LIGHT, DARK: LIGHT}
FEMALE, MALE = 0x2640, 0x2642
OTHER_TONE = {("flat", (0x1F6C0, MEDIUM_DARK)), ("3d", (0x1FAC4, DARK))}  # a bath, yellow; pregnancy, medium-dark

Draw = Callable[[], Image.Image]  # a picture as the package has it, with transparency


def pictures(packages: Path, words: Mapping[Codes, Word]) -> dict[str, dict[Codes, Draw]]:
    """The pictures of every style that are worth learning, in the order of the words. Raises ValueError.

    Left out are flags, which are patterns rather than things, samples of skin, Noto's families, which are grey signs that all
    look the same, and what a package has under a wrong name.
    """
    styles = {"noto": _noto(packages), "3d": _three_d(packages), "flat": _flat(packages)}
    return {
        style: {each: found[each] for each, word in words.items() if each in found and not _left_out(style, each, word)}
        for style, found in styles.items()
    }


def framed(image: Image.Image, scale: float) -> Image.Image:
    """A picture of SIDE on white, enlarged about its centre, less where something would be cut off."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    x, y = image.width / 2, image.height / 2
    left, top, right, bottom = image.getchannel("A").point(lambda alpha: 255 * (alpha > INK)).getbbox() or (x, y, x, y)
    half = max(image.width / 2 / scale, x - left, right - x, y - top, bottom - y)
    margin = max(0, ceil(half - min(x, y)))
    x, y = x + margin, y + margin
    opaque = ImageOps.expand(white.convert("RGB"), margin, "white")
    return opaque.resize((SIDE, SIDE), Image.Resampling.LANCZOS, (x - half, y - half, x + half, y + half))


def _left_out(style: str, each: Codes, word: Word) -> bool:
    sign = style == "noto" and word.label.partition(":")[0] == "family"
    return sign or word.group in (FLAGS, COMPONENTS) or (style, each) in OTHER_TONE


def _noto(packages: Path) -> dict[Codes, Draw]:
    return {codes(path.stem): partial(Image.open, path) for path in read(packages, NOTO, "img/google/64").glob("*.png")}


def _three_d(packages: Path) -> dict[Codes, Draw]:
    files = sorted(read(packages, THREE_D, "assets").glob("*.webp"))  # some twice: "31-fe0f-20e3" and "0031-fe0f-20e3"
    return {_shown(codes(path.stem)): partial(Image.open, path) for path in files}


def _shown(named: Codes) -> Codes:
    """The code points of what a file of the 3d package shows, which is named by others."""
    if tuple(point for point in named if point not in TONES) == MOUNTAIN_BIKING:
        right = ASTRAY
    else:
        right = SWAPPED if UNSWAPPED.isdisjoint(named) else {}
    if DEAF in named:
        right = right | {FEMALE: MALE, MALE: FEMALE}
    return tuple(right.get(point, point) for point in named)


def _flat(packages: Path) -> dict[Codes, Draw]:
    """Without mirrored icons, which have no code points there."""
    names = json.loads(read(packages, FLAT, "chars.json").read_text("utf-8"))
    icons = json.loads(read(packages, FLAT, "icons.json").read_text("utf-8"))
    usual = {key: icons[key] for key in ("width", "height")}
    return {codes(key): partial(_render, usual | icons["icons"][name]) for key, name in names.items()}


def _render(icon: Mapping[str, Any]) -> Image.Image:
    """An icon of Iconify at LARGE. Raises ValueError without resvg-py."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise ValueError(
            "the flat style is drawn by resvg-py, which is not installed; install it: pip install resvg-py"
        ) from None
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon['width']} {icon['height']}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'
    height = round(LARGE * icon["height"] / icon["width"])
    return Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=LARGE, height=height, skip_system_fonts=True))))

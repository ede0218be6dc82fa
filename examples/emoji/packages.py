"""The npm packages that the pictures and words come from: where they lie, their words, their licenses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "COMPONENTS",
    "FLAGS",
    "FLAT",
    "NOTO",
    "SYMBOLS",
    "THREE_D",
    "Codes",
    "Word",
    "codes",
    "licenses",
    "read",
    "read_words",
]

NOTO, THREE_D, FLAT = "emoji-datasource-google", "@lobehub/fluent-emoji-3d", "@iconify-json/fluent-emoji-flat"
WORDS = "emojibase-data"
COMPONENTS, SYMBOLS, FLAGS = 2, 8, 9  # groups of emoji, as Unicode numbers them
VARIATION = 0xFE0F  # asks for a picture instead of a letter; packages write it or not

MICROSOFT = {
    "license": "MIT",
    "copyright": "Copyright (c) Microsoft Corporation",
    "source": "https://github.com/microsoft/fluentui-emoji",
}
ORIGINS: Mapping[str, Mapping[str, str]] = {
    NOTO: {
        "what": "pictures, noto style",
        "license": "Apache-2.0",  # of its pictures, as its README says; MIT is that of its tables
        "copyright": "Copyright Google LLC",
        "source": "https://github.com/googlefonts/noto-emoji",
        "packaged": "MIT, Copyright (c) 2013 Cal Henderson",
    },
    THREE_D: {"what": "pictures, 3d style", **MICROSOFT, "packaged": "MIT, Copyright © 2023 LobeHub"},
    FLAT: {"what": "pictures, flat style", **MICROSOFT, "packaged": "MIT, Iconify"},
    WORDS: {
        "what": "names and keywords",
        "license": "MIT",
        "copyright": "Copyright (c) 2017-2019 Miles Johnson",
        "source": "https://github.com/milesj/emojibase",
        "packaged": "MIT, Copyright (c) 2017-2019 Miles Johnson; names and keywords of Unicode's CLDR",
    },
}

Codes = tuple[int, ...]  # code points of an emoji, without VARIATION


@dataclass(frozen=True)
class Word:
    """What an emoji is called, in lower case and with plain quotes: its label; tags and other names of its toneless form."""

    label: str
    tags: tuple[str, ...]
    other_names: tuple[str, ...]
    group: int


def codes(text: str) -> Codes:
    """Code points as file names have them: "0031-fe0f-20e3"."""
    return tuple(point for point in (int(part, 16) for part in text.split("-")) if point != VARIATION)


def read(packages: Path, package: str, file: str) -> Path:
    """A file or folder of a package. Raises ValueError where one lacks."""
    folder = packages / "node_modules" / package
    if not folder.is_dir():
        raise ValueError(f"{package} is not in {packages}; install it: npm install --prefix {packages} {' '.join(ORIGINS)}")
    if not (folder / file).exists():
        raise ValueError(f"{package} {_version(packages, package)} has no {file}; install the version that data.py names")
    return folder / file


def read_words(packages: Path) -> dict[Codes, Word]:
    """What every emoji is called, as Unicode orders them, those without a tone of skin first. Raises ValueError."""
    found = json.loads(read(packages, WORDS, "en/data.json").read_text("utf-8"))
    names = json.loads(read(packages, WORDS, "en/shortcodes/emojibase.json").read_text("utf-8"))
    words = {}
    for toneless in sorted(found, key=lambda each: each.get("order", 0)):
        if "group" not in toneless:  # letters that flags are spelled with
            continue
        other = names.get(toneless["hexcode"], [])
        for each in (toneless, *toneless.get("skins", [])):
            words[codes(each["hexcode"])] = Word(
                _plain(each["label"]),
                tuple(map(_plain, toneless.get("tags", []))),
                (other,) if isinstance(other, str) else tuple(other),
                toneless["group"],
            )
    return words


def licenses(packages: Path) -> list[dict[str, Any]]:
    """What was taken from which package, its license and whose it is, for a model's card."""
    return [{"package": name, "version": _version(packages, name), **origin} for name, origin in ORIGINS.items()]


def _version(packages: Path, package: str) -> str:
    content = json.loads(read(packages, package, "package.json").read_text("utf-8"))
    return str(content["version"])


def _plain(text: str) -> str:
    return text.lower().translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})

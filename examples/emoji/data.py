"""Make a data set of emoji with words: python examples/emoji/data.py packages emoji

    npm install --prefix packages emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 \\
        @iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0
    pip install resvg-py

Writes a folder as Hugging Face's imagefolder: about 10,000 pictures of 64x64 pixels in three styles, and metadata.jsonl, a line
for each picture: its file, captions (the first is the canonical one), style, name, code points and split: train, combination or
name (held_out.py says which is which). LICENSES.json says whose they are. The same packages give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from captions import captions, name
from held_out import HeldOut, concept
from packages import Codes, Word, licenses, read_words
from pictures import SCALE, framed, pictures

from fewstep.artifact.staging import staged
from fewstep.system.console import say, track

__all__ = ["make"]


def make(packages: Path, out: Path, held_out: HeldOut) -> None:
    """Write the data set to a new folder. Raises ValueError, OSError; then nothing is written."""
    if out.exists():
        raise ValueError(f"{out} is there already; name a new folder, or remove it")
    words = read_words(packages)
    labels = {word.label for word in words.values()}
    drawn = pictures(packages, words)
    order = [(each, style) for each in words for style in drawn if each in drawn[style]]
    seen: dict[tuple[str, bytes], Codes] = {}
    rows: list[dict[str, Any]] = []
    with staged(out) as folder:
        for style in drawn:
            (folder / style).mkdir()
        for i in track(range(len(order)), "pictures"):
            each, style = order[i]
            word, picture = words[each], framed(drawn[style][each](), SCALE[style])
            first = seen.setdefault((style, picture.tobytes()), each)
            if first != each:
                say(f"{style}: {word.label} looks like {words[first].label}; left out")
                continue
            points = "-".join(f"{point:x}" for point in each)
            picture.save(folder / style / f"{points}.png")
            split = held_out.split(concept(word.label, labels), style, word.label)
            rows.append(_row(word, style, points, split))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "metadata.jsonl").write_text("".join(lines), "utf-8")
        (folder / "LICENSES.json").write_text(json.dumps(licenses(packages), indent=1, ensure_ascii=False) + "\n", "utf-8")
    for (style, split), count in sorted(Counter((row["style"], row["split"]) for row in rows).items()):
        say(f"{style}, {split}: {count} pictures")


def _row(word: Word, style: str, points: str, split: str) -> dict[str, Any]:
    return {
        "file_name": f"{style}/{points}.png",
        "captions": captions(word.label, word.tags, word.other_names, style),
        "style": style,
        "name": name(word.label),
        "codepoints": points,
        "split": split,
    }


def main(packages: Path, out: Path) -> None:
    try:
        make(packages, out, HeldOut.load())
    except (ValueError, OSError) as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

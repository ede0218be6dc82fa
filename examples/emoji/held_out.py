"""What no model of emoji trains on: whole names, names in one style, and professions with a tone of skin.

    python examples/emoji/held_out.py packages

chooses them and writes held_out.json beside this file, which is written down before anything is trained and read by data.py.
Emoji that differ in gender, tone of skin, hair or direction, or show an animal and its face, are one concept, so that nothing
of what is held out is seen under another name.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captions import tones
from packages import SYMBOLS, read_words
from pictures import pictures

__all__ = ["FILE", "HeldOut", "choose", "concept"]

FILE = Path(__file__).with_name("held_out.json")
NAMES, STYLED = 1 / 10, 3 / 100  # of all concepts: held out altogether, held out in one style
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONES_EACH = 2  # held out of every profession
PROFESSIONS = (
    *("artist", "astronaut", "construction worker", "cook", "detective", "factory worker", "farmer", "firefighter", "guard"),
    *("health worker", "judge", "mechanic", "ninja", "office worker", "pilot", "police officer", "scientist", "singer"),
    *("student", "teacher", "technologist"),
)
SAME = {
    "boy": "child",
    "breast-feeding": "feeding baby",
    "girl": "child",
    "grinning cat": "cat",  # the picture of "cat face" in two of the styles
    "mermaid": "merperson",
    "merman": "merperson",
    "mrs. claus": "santa claus",
    "mx claus": "santa claus",
    "old man": "older person",
    "old woman": "older person",
    "prince": "person with crown",
    "princess": "person with crown",
    "woman and man holding hands": "holding hands",
}
GENDER = re.compile(r"\b(person|people|man|men|woman|women)\b(?!')")


@dataclass(frozen=True)
class HeldOut:
    """Concepts, concepts of each style, and pairs of a profession and a tone that are not trained on."""

    names: frozenset[str]
    styles: Mapping[str, frozenset[str]]
    tones: frozenset[tuple[str, str]]

    @classmethod
    def load(cls, path: Path = FILE) -> HeldOut:
        """Raises OSError."""
        found = json.loads(path.read_text("utf-8"))
        styles = {style: frozenset(names) for style, names in found["styles"].items()}
        return cls(frozenset(found["names"]), styles, frozenset((each, tone) for each, tone in found["tones"]))

    def save(self, path: Path = FILE) -> None:
        styles = {style: sorted(names) for style, names in self.styles.items()}
        content = {"names": sorted(self.names), "styles": styles, "tones": sorted(self.tones)}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def split(self, concept: str, style: str, label: str) -> str:
        """train, combination or name: where the picture of a label in a style belongs."""
        if concept in self.names:
            return "name"
        toned = any((concept, tone) in self.tones for tone in tones(label))
        return "combination" if toned or concept in self.styles.get(style, ()) else "train"


def concept(label: str, labels: Collection[str]) -> str:
    """What a label shows whatever the gender, tone, hair and direction; labels are all there are."""
    head = label.partition(": ")[0]
    head = SAME.get(head, head)
    if head.endswith(" face") and head.removesuffix(" face") in labels:
        head = head.removesuffix(" face")
    return " ".join(GENDER.sub("", head).split()) or "person"


def choose(concepts: Mapping[str, Collection[str]], unnamed: Collection[str]) -> HeldOut:
    """Hold out of concepts, which have styles; those in `unnamed` are not held out altogether. The same at every call."""
    names = frozenset(_drawn(set(concepts) - set(unnamed), "names")[: round(NAMES * len(concepts))])
    styles = sorted(set().union(*concepts.values()))
    free = {each for each, there in concepts.items() if set(styles) <= set(there)} - names - set(PROFESSIONS)
    styled = _drawn(free, "styles")[: round(STYLED * len(concepts))]
    professions = _drawn(set(PROFESSIONS) & set(concepts) - names, "tones")
    pairs = (
        (each, TONES[(place + 2 * turn) % len(TONES)]) for place, each in enumerate(professions) for turn in range(TONES_EACH)
    )
    return HeldOut(names, {style: frozenset(styled[i :: len(styles)]) for i, style in enumerate(styles)}, frozenset(pairs))


def _drawn(concepts: Iterable[str], what: str) -> Sequence[str]:
    """Concepts in an order that is chance's, but the same everywhere."""
    return sorted(concepts, key=lambda each: hashlib.sha256(f"{what}: {each}".encode()).digest())


def main(packages: Path) -> None:
    emoji = read_words(packages)
    labels = {each.label for each in emoji.values()}
    styles: dict[str, set[str]] = {}
    for style, drawn in pictures(packages, emoji).items():
        for codes in drawn:
            styles.setdefault(concept(emoji[codes].label, labels), set()).add(style)
    chosen = choose(styles, {concept(each.label, labels) for each in emoji.values() if each.group == SYMBOLS})
    chosen.save()
    styled = sum(map(len, chosen.styles.values()))
    print(f"{FILE}: of {len(styles)} names {len(chosen.names)}, {styled} in one style, and {len(chosen.tones)} pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

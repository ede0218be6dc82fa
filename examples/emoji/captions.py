"""What an emoji shows, in words: from a label of Unicode's CLDR, such as "woman: dark skin tone, red hair", to captions.

A name is a phrase in lower case without an article ("woman with dark skin tone and red hair"). Labels hold details behind a
colon: tones of skin, hair, a direction, the members of a couple or a family. All that goes in is in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["captions", "name", "tones", "with_article"]

TONE = " skin tone"
MEMBERS = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "adult": "adults",
    "girl": "girls",
    "boy": "boys",
    "child": "children",
}
GROUPS = {"kiss": "{} kissing", "couple with heart": "{} in love", "family": "family of {}"}
KEYWORDS = 4  # tags in a caption of keywords

# Names that take no article: what cannot be counted, proper names, signs that are no things.
BARE = {
    *("american football", "antenna bars", "aquarius", "aries", "bacon", "badminton", "baggage claim", "biohazard"),
    *("bowling", "bread", "breast-feeding", "broccoli", "building construction", "butter", "camping", "cancer", "candy"),
    *("canned food", "capricorn", "children crossing", "cinema", "construction", "cooked rice", "cooking", "copyright"),
    *("coral", "currency exchange", "curry rice", "custard", "dashing away", "divide", "dizzy", "dna", "falafel"),
    *("field hockey", "fire", "flatbread", "fog", "foggy", "fondue", "garlic", "gemini", "ginger root", "high voltage"),
    *("horse racing", "ice", "ice cream", "ice hockey", "infinity", "information", "lacrosse", "left luggage", "leo"),
    *("libra", "light rail", "locked", "locked with key", "locked with pen", "luggage", "mate", "meat on bone", "minus"),
    *("mobile phone off", "money with wings", "mount fuji", "mrs. claus", "multiply", "mx claus", "nail polish"),
    *("non-potable water", "oden", "om", "ophiuchus", "palms up together", "passport control", "ping pong", "pisces"),
    *("plus", "popcorn", "potable water", "pouring liquid", "prohibited", "radioactive", "registered"),
    *("rolling on the floor laughing", "sagittarius", "sake", "salt", "santa claus", "scorpio", "shaved ice", "soap"),
    *("soft ice cream", "spaghetti", "star-struck", "sushi", "taurus", "tennis", "thread", "thumbs down", "thumbs up"),
    *("tokyo tower", "trade mark", "unlocked", "vibration mode", "virgo", "warning", "wireless", "wood", "yarn", "zzz"),
}
ONLY = {"kaaba", "milky way", "statue of liberty"}  # of its kind: the
BARE_BEGIN = re.compile(r"(no|input|people|men|women|two|busts|a) ")
BARE_END = re.compile(r"( o'clock|-thirty)$")
SINGULAR_BEGIN = re.compile(r"(person|man|woman|face|deaf|sad|anxious|downcast) ")  # whatever they hold
NOUN_ENDS = re.compile(r" (with|without|of|in|on|at|over|behind|showing|facing|between)\b")
SINGULAR_S = re.compile(r"(ss|us|rhinoceros)$")
AN = re.compile(r"(?!one\b|one-|eu|ewe|uni|ut)[aeiou]|hour|x-ray|sos |ng ")


def tones(label: str) -> list[str]:
    """The tones of skin that a label names, without "skin tone"; of a couple, from left to right."""
    return [detail.removesuffix(TONE) for detail in _details(label) if detail.endswith(TONE)]


def name(label: str) -> str:
    """A label as a phrase."""
    phrase, details = label.partition(": ")[0].replace("woman and man", "a woman and a man"), _details(label)
    members = [detail for detail in details if detail in MEMBERS]
    if members:
        phrase = GROUPS[phrase].format(_counted(members))
    elif phrase == "keycap":
        return f"keycap with {details[0]}"
    if "bald" in details:
        phrase = f"bald {phrase}"
    if "facing right" in details:
        phrase += " facing right"
    carried = [detail for detail in details if detail.endswith((TONE, " hair"))]
    carried += ["a beard"] if "beard" in details else []
    if not carried:
        return phrase
    return f"{phrase} {'and' if ' with ' in phrase else 'with'} {' and '.join(carried)}"


def with_article(phrase: str) -> str:
    """A name as one says it: "an owl", "grapes", "the statue of liberty"."""
    noun = NOUN_ENDS.split(phrase)[0]
    plural = noun.endswith("s") and not SINGULAR_S.search(noun) and not SINGULAR_BEGIN.match(noun)
    if plural or phrase in BARE or BARE_BEGIN.match(phrase) or BARE_END.search(phrase):
        return phrase
    if phrase in ONLY:
        return f"the {phrase}"
    return f"{'an' if AN.match(phrase) else 'a'} {phrase}"


def captions(label: str, tags: Sequence[str], other_names: Sequence[str], style: str) -> list[str]:
    """Four to nine captions of a picture, none twice; the first, "a red fox, flat style", is the canonical one.

    tags and other_names are of the emoji without tones of skin.
    """
    phrase, found = name(label), tones(label)
    said, keywords = with_article(phrase), ", ".join(_keywords(label, tags))
    written = [
        f"{said}, {style} style",
        f"{phrase}, {style} style",
        f"{style} style {phrase}",
        said,
        f"an emoji of {said} in {style} style",
        f"{keywords}, {style} style",
        keywords,
    ]
    toneless = label.partition(": ")[0]
    if _details(label) == [f"{tone}{TONE}" for tone in found[:1]]:
        if found:
            written.append(f"{with_article(f'{found[0]}-skinned {toneless}')}, {style} style")
        if other := _other(toneless, other_names):
            written.append(f"{other}{f' with {found[0]}{TONE}' if found else ''}, {style} style")
    return list(dict.fromkeys(written))


def _details(label: str) -> list[str]:
    _, _, behind = label.partition(": ")
    return behind.split(", ") if behind else []


def _counted(members: Sequence[str]) -> str:
    """The members in the order in which they come first: "a man and two girls"."""
    counts = {member: members.count(member) for member in members}
    parts = [with_article(member) if count == 1 else f"two {MEMBERS[member]}" for member, count in counts.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _keywords(label: str, tags: Sequence[str]) -> list[str]:
    """The name without its details, the details, and the tags that say something else."""
    words = [label.partition(": ")[0], *_details(label)]
    known = _words(" ".join(words))
    new = [tag for tag in tags if not _words(tag) <= known and not re.search(r"\d", tag)]
    return words + new[:KEYWORDS]


def _other(label: str, other_names: Sequence[str]) -> str | None:
    """The first other name that has other words."""
    others = (code.replace("_", " ") for code in other_names)
    return next((other for other in others if not re.search(r"\d", other) and not _words(other) <= _words(label)), None)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))

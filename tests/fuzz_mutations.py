"""Changes to bytes that a fuzzer makes: JSON is changed as a tree, so that it gets past the parser, anything else as bytes."""

from __future__ import annotations

import json
from copy import deepcopy
from math import inf, nan
from random import Random
from typing import Any

__all__ = ["mutated"]

NUMBERS = (
    0,
    1,
    -1,
    2,
    255,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**400,
    0.5,
    -0.0,
    5e-324,
    1e200,
    1e308,
    nan,
    inf,
)
TEXTS = ("", ".", "..", "../secret.bin", "/etc/hostname", "a//b", "bundle.json", "\0", "\ud800", "é", "a" * 300, "c:\\x")
VALUES = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [None], {"": 0})


def mutated(content: bytes, random: Random) -> bytes:
    """One to four changes. The first line of a body that is not JSON as a whole is left to the bytes."""
    head, newline, tail = content.partition(b"\n") if content[:1] != b"{" else (b"", b"", content)
    for _ in range(random.randint(1, 4)):
        if random.random() < 0.2:
            head = _bytes(head, random)
            continue
        try:
            tail = json.dumps(_tree(json.loads(tail), random)).encode()
        except (ValueError, RecursionError):
            return _bytes(content, random)
        if random.random() < 0.1:
            tail = _bytes(tail, random)
    return head + newline + tail


def _tree(tree: Any, random: Random) -> Any:
    """One value changed, taken away, doubled, or put where another is."""
    places = list(_places(tree))
    if not places:
        return random.choice(VALUES)
    holder, key = random.choice(places)
    other, other_key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = deepcopy(other[other_key])
        case 2 if isinstance(holder, list):
            holder.insert(key, deepcopy(other[other_key]))
        case 2:
            holder[random.choice([k for k in TEXTS if k] + [str(other_key)])] = holder[key]
        case 3 if type(holder[key]) is int and abs(holder[key]) < 2**64:
            holder[key] = random.choice(
                (float(holder[key]), bool(holder[key]), str(holder[key]), -holder[key], holder[key] + 1)
            )
        case _:
            holder[key] = random.choice(VALUES)
    return tree


def _places(tree: Any) -> Any:
    """Every value of a tree as its holder and its key there."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


def _bytes(content: bytes, random: Random) -> bytes:
    """A run of bytes taken away, doubled, moved or overwritten."""
    at, end = sorted(random.randint(0, len(content)) for _ in range(2))
    end = min(end, at + random.choice((1, 1, 2, 8, 64)))
    to = random.randint(0, len(content))
    piece = content[at:end]
    noise = random.choice((b"\0", b"\xff", b"\x80", bytes([random.randrange(256)]))) * max(1, len(piece))
    return random.choice(
        (
            content[:at] + content[end:],
            content[:end] + piece + content[end:],
            content[:to] + piece + content[to:],
            content[:at] + noise + content[end:],
            content[:at],
        )
    )

"""What the pages show as commands and code, in the order in which a reader meets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What begins a command where it stands in a sentence: `fewstep bench digits.bundle`. Blocks need no such list.
PROGRAMS = "fewstep|python|make|pip|npm|npx|curl|docker|pkg-config|accelerate|torchrun|serve"


class Block(NamedTuple):
    """kind: sh for indented blocks and for a command in a sentence, else the language of the fence; line: its first."""

    line: int
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines, joined where one goes on, without comments."""
        lines = (re.sub(r"(^|\s)#\s.*$", "", line).strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """Everything on a page that is to be typed or run."""
    return [block for part in _parts(page.read_text("utf-8")) for block in _runnable(part)]


def following(said: str) -> list[str]:
    """The commands that a verb names at its end: next: fewstep pick B --calls 4, or: fewstep report B."""
    lines = re.findall(r"^next: (.*)$", said, re.MULTILINE)
    return [re.sub(r"\s+\(.*\)$", "", command) for line in lines for command in re.split(r",? or: ", line)]


def _runnable(part: Block) -> Iterator[Block]:
    if part.kind != "prose":
        yield part
        return
    for found in re.finditer(rf"`((?:{PROGRAMS}) [^`]+)`", part.text):
        command = " ".join(found[1].split())
        if not re.fullmatch(r"fewstep [\w-]+", command):  # which is the name of a verb
            yield Block(part.line + part.text[: found.start()].count("\n"), "sh", command)


def _parts(text: str) -> Iterator[Block]:
    """A page from its top: fences by their language, indented blocks as sh, paragraphs as prose."""
    part, before = Block(1, "prose", ""), ""
    for number, line in enumerate(text.splitlines(), 1):
        fenced = part.text.startswith("```")
        blank, indented = not line.strip(), line.startswith("    ")
        if fenced:
            if line == "```":
                yield Block(part.line, part.kind, part.text.split("\n", 1)[1])
                part = Block(number + 1, "prose", "")
            else:
                part = part._replace(text=f"{part.text}{line}\n")
        elif line.startswith("```"):
            yield part
            part = Block(number, line[3:], f"{line}\n")
        elif part.kind == "sh" and not (blank or indented):
            yield part
            part = Block(number, "prose", f"{line}\n")
        elif part.kind == "prose" and indented and not before.strip():
            yield part
            part = Block(number, "sh", f"{line[4:]}\n")
        else:
            part = part._replace(text=f"{part.text}{line[4:] if part.kind == 'sh' else line}\n")
        before = line
    yield part

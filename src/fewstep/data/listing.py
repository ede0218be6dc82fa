"""What lies in a directory, listed by ourselves: every file is used, or named as one that is not."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fewstep.data.decode import FORMATS, SUFFIXES

__all__ = ["Found", "Photos", "in_folders", "listed", "plain", "shown", "unread"]

JUNK = {".ds_store", "thumbs.db", "desktop.ini", "__macosx", "@eadir"}  # what systems leave in every folder, in lower case
SHOWN = 5  # names in a line
Parts: TypeAlias = tuple[str, ...]  # of a path below the directory
Node: TypeAlias = tuple[int, int]  # device and number of a folder, whatever leads to it
Waiting: TypeAlias = tuple[Parts, frozenset[Node]]  # a folder to look into, and those above it


@dataclass
class Found:
    """What lies below a directory.

    Args:
        files: by the parts of their paths.
        folders: names of the directory's own.
        skipped: what was not looked into, with the reason.
    """

    files: list[Parts] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def of(self, suffixes: Container[str]) -> list[Parts]:
        """Files whose names end so, in small letters or capitals."""
        return [parts for parts in self.files if PurePath(parts[-1]).suffix.lower() in suffixes]


@dataclass(frozen=True)
class Photos:
    """Image files of a folder.

    Args:
        paths: in the order of the images.
        labels: (N,); None where there are no classes.
        names: of the classes, by number.
        notes: lines for people.
    """

    paths: list[Path]
    labels: npt.NDArray[np.int64] | None
    names: tuple[str, ...]
    notes: tuple[str, ...]


def listed(root: Path) -> Found:
    """All files below a directory. Links are followed, but not to a folder that holds them; what is hidden is skipped.

    Raises OSError for a folder that cannot be read.
    """
    found = Found()
    waiting: list[Waiting] = [((), frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        about = folder.stat()
        above |= {(about.st_dev, about.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                _sort_in(entry, parts, above, found, waiting)
    return Found(sorted(found.files), sorted(found.folders), sorted(found.skipped))


def _sort_in(entry: os.DirEntry[str], parts: Parts, above: frozenset[Node], found: Found, waiting: list[Waiting]) -> None:
    name, at = entry.name, (*parts, entry.name)
    if name.lower() in JUNK or name.startswith("._"):
        return
    if name.startswith("."):
        found.skipped.append(f"{'/'.join(at)} (hidden)")
    elif Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
        about = Path(entry.path).stat()
        if (about.st_dev, about.st_ino) in above:
            found.skipped.append(f"{'/'.join(at)} (a link to a folder that holds it)")
        else:
            waiting.append((at, above))
            found.folders += [name] if not parts else []
    elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is found when it is read
        found.files.append(at)
    else:
        found.skipped.append(f"{'/'.join(at)} (not a file)")


def in_folders(root: Path, found: Found) -> Photos:
    """The images of a folder: each of its own folders is a class, with all that lies below it; or there are no classes.

    Args:
        root: the folder.
        found: what `listed` found in it.

    Raises:
        ValueError: where there is no image, a class has none, a class has a name that cannot be printed, or it is unclear which
            folders are the classes.
    """
    images = found.of(SUFFIXES)
    nested = [parts for parts in images if len(parts) > 1]
    if not images:
        held = _by_suffix(found.files)
        raise ValueError(f"{root} holds no images of {', '.join(FORMATS)}, but {held}; put some in (one subfolder per class)")
    if nested and len(nested) < len(images):
        loose = next(parts for parts in images if len(parts) == 1)
        raise ValueError(
            f"{root} has images of classes, in folders, and {len(images) - len(nested)} of none, such as {shown(loose[0])}; "
            "put all into folders, or none"
        )
    notes = unread(found, found.of(SUFFIXES))
    if not nested:
        return Photos([root.joinpath(*parts) for parts in sorted(images, key=_order)], None, (), notes)
    numbers = _classes(root, found.folders)
    _refuse_unclear(root, found, nested)
    nested.sort(key=lambda parts: (numbers[parts[0]], _order(parts)))
    deeper = Counter(parts[0] for parts in nested if len(parts) > 2)
    notes += tuple(f"{count} images of the class {name} lie in folders within it" for name, count in sorted(deeper.items()))
    labels = np.array([numbers[parts[0]] for parts in nested], np.int64)
    return Photos([root.joinpath(*parts) for parts in nested], labels, tuple(map(plain, numbers)), notes)


def _classes(root: Path, folders: Sequence[str]) -> dict[str, int]:
    """Numbers of classes by the names of their folders, in the order of these."""
    for name in folders:
        if not plain(name).isprintable():
            raise ValueError(f"{root} has a folder {shown(name)}, whose name cannot be printed; rename it, for it is a class")
    if twice := [name for name, count in Counter(map(plain, folders)).items() if count > 1]:
        raise ValueError(f"{root} has two folders that both read {twice[0]}, in other bytes; rename one, or put them together")
    return {name: number for number, name in enumerate(sorted(folders, key=plain))}


def _refuse_unclear(root: Path, found: Found, images: Sequence[Parts]) -> None:
    """Every class has images, and some in the folder itself: else its folders may be the classes that are meant."""
    own = {parts[0] for parts in images if len(parts) == 2}
    for name in sorted({*found.folders} - own, key=plain):
        below = [parts for parts in images if parts[0] == name]
        if below:
            raise ValueError(
                f"{root} is unclear: images lie in {shown('/'.join(below[0][:2]))}, and none in {shown(name)} itself; "
                f"give the folder whose folders are the classes, or move the images into {shown(name)}"
            )
        others = _by_suffix([parts for parts in found.files if parts[0] == name])
        held = f" (it holds {others})" if others else ""
        raise ValueError(
            f"{root} cannot be read as images: its folder {shown(name)} is a class without images{held}; "
            "put some into it, or remove it"
        )


def unread(found: Found, used: Sequence[Parts]) -> tuple[str, ...]:
    """Lines that name what lies there and is not read.

    Args:
        found: what lies there.
        used: files that are read, by the parts of their paths.
    """
    read = set(used)
    others = _by_suffix([parts for parts in found.files if parts not in read])
    lines = [f"not read: {others}"] if others else []
    if found.skipped:
        more = f" and {len(found.skipped) - SHOWN} more" if len(found.skipped) > SHOWN else ""
        lines.append(f"passed over: {shown(', '.join(found.skipped[:SHOWN]))}{more}")
    return tuple(lines)


def _by_suffix(files: Sequence[Parts]) -> str:
    """3 .txt (such as a/1.txt), 1 .csv (such as metadata.csv)"""
    kinds: dict[str, list[Parts]] = {}
    for parts in files:
        kinds.setdefault(PurePath(parts[-1]).suffix.lower() or "without a suffix", []).append(parts)
    return ", ".join(f"{len(some)} {shown(kind)} (such as {shown('/'.join(some[0]))})" for kind, some in kinds.items())


def plain(name: str) -> str:
    """A name as it is known, however a file system spells its accents."""
    return unicodedata.normalize("NFC", name)


def shown(text: str) -> str:
    """Text that may come from anyone, for a terminal: what cannot be printed is escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _order(parts: Parts) -> Parts:
    return tuple(map(plain, parts))

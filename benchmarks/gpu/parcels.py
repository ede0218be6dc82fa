"""Files that travel in parts: python -m gpu.parcels split FOLDER OUT, take PART STORE, join STORE FOLDER

A part is a folder OUT/01, OUT/02, ... of pieces that together have at most PART_BYTES, and the manifest of them all. Parts are
taken into a store one by one, in any order, and as often as one likes; what is whole there is joined. Every piece and every
file is checked against its sha256. Needs Python alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["PART_BYTES", "join", "split", "take"]

PART_BYTES = 45_000_000  # with this repository, what 64 MiB have room for
MAX_BYTES = 4 << 30  # of all files together
MANIFEST = "manifest.json"
CHUNK = 1 << 20


class Piece(NamedTuple):
    """Bytes begin .. begin + size of a file, as a file of its own in a part."""

    name: str
    part: int
    begin: int
    size: int
    sha256: str


def split(folder: Path, out: Path, part_bytes: int = PART_BYTES) -> int:
    """Write a folder's files as parts, small files first; how many parts. Raises ValueError where out is there already."""
    if out.exists():
        raise ValueError(f"{out} exists already; remove it, or choose another folder")
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: (path.stat().st_size, path.name))
    if not files:
        raise ValueError(f"{folder} has no files to pack")
    manifest: dict[str, Any] = {}
    part, room = 1, part_bytes
    for path in files:
        pieces: list[Piece] = []
        begin, size = 0, path.stat().st_size
        while begin < size or not pieces:
            if not room:
                part, room = part + 1, part_bytes
            count = min(size - begin, room)
            piece = out / f"{part:02}" / f"{path.name}.{len(pieces):03}"
            piece.parent.mkdir(parents=True, exist_ok=True)
            pieces.append(Piece(piece.name, part, begin, count, _copy(path, piece, begin, count)))
            begin, room = begin + count, room - count
        manifest[path.name] = {"size": size, "sha256": _digest(path), "pieces": [piece._asdict() for piece in pieces]}
    for number in range(1, part + 1):
        (out / f"{number:02}" / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return part


def take(part: Path, store: Path) -> list[str]:
    """Copy a part's pieces into the store; their names. Raises ValueError for a piece that is not what was packed."""
    manifest = _read(part)
    store.mkdir(parents=True, exist_ok=True)
    if (store / MANIFEST).exists() and _read(store) != manifest:
        raise ValueError(f"{store} holds parts of another packing; remove it and take all parts again")
    taken = []
    for piece in _pieces(manifest):
        source, beside = part / piece.name, store / f"{piece.name}.new"
        if not source.exists():
            continue
        if source.stat().st_size != piece.size or _copy(source, beside, 0, piece.size) != piece.sha256:
            beside.unlink(missing_ok=True)
            raise ValueError(f"{source} is not the piece that was packed; copy this part again")
        beside.replace(store / piece.name)
        taken.append(piece.name)
    shutil.copyfile(part / MANIFEST, store / MANIFEST)
    return taken


def join(store: Path, folder: Path) -> list[str]:
    """Write the files whose pieces are all in the store; a sentence for each of the others.

    Raises ValueError where what was joined is not what was packed.
    """
    manifest, missing = _read(store), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in manifest.items():
        pieces = [Piece(**piece) for piece in file["pieces"]]
        if lacking := sorted({piece.part for piece in pieces if not (store / piece.name).is_file()}):
            missing.append(f"{name} is not whole: part {', '.join(f'{part:02}' for part in lacking)} is not there")
            continue
        beside = folder / f"{name}.new"
        found = hashlib.sha256()
        with beside.open("wb") as out:
            for piece in pieces:
                for block in _blocks(store / piece.name, 0, piece.size):
                    found.update(block)
                    out.write(block)
        if beside.stat().st_size != file["size"] or found.hexdigest() != file["sha256"]:
            beside.unlink()
            raise ValueError(f"{name} came out other than it was packed; remove {store} and take all parts again")
        beside.replace(folder / name)
    return missing


def _read(folder: Path) -> dict[str, Any]:
    """A manifest, its names and sizes checked: they become paths and loops here."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        names = [*manifest, *(piece.name for piece in _pieces(manifest))]
        sizes = [size for file in manifest.values() for size in (file["size"], *(piece["size"] for piece in file["pieces"]))]
        plain = all(name == os.path.basename(name) and name.isprintable() and name.strip(".") for name in names)  # noqa: PTH119
        if not plain or not all(isinstance(size, int) and size >= 0 for size in sizes) or sum(sizes) > 2 * MAX_BYTES:
            raise ValueError("a name that leaves its folder, or a size that cannot be")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of parts ({' '.join(str(error).split())}); copy it again") from None
    return manifest


def _pieces(manifest: dict[str, Any]) -> list[Piece]:
    return [Piece(**piece) for file in manifest.values() for piece in file["pieces"]]


def _copy(source: Path, target: Path, begin: int, size: int) -> str:
    """Copy some bytes; their sha256."""
    found = hashlib.sha256()
    with target.open("wb") as out:
        for block in _blocks(source, begin, size):
            found.update(block)
            out.write(block)
    return found.hexdigest()


def _blocks(path: Path, begin: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while size and (block := file.read(min(CHUNK, size))):
            size -= len(block)
            yield block


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> int:
    verb, source, target = arguments[0], Path(arguments[1]), Path(arguments[2])
    try:
        if verb == "split":
            print(f"{split(source, target)} parts in {target}")
        elif verb == "take":
            print(f"{len(take(source, target))} pieces of {source}")
        else:
            missing = join(source, target)
            print("\n".join(missing) if missing else f"every file is whole, in {target}")
            return bool(missing)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("split", "take", "join"):
        sys.exit(str(__doc__))
    sys.exit(main(sys.argv[1:]))

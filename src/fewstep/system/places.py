"""Where things are written: asked before the work that goes into them, and in one way by every verb.

A bundle, a package or a server's model is a directory that is replaced as a whole; a picture or a page is a file that is
written beside and renamed. Neither lies inside a bundle, which holds only what its manifest lists.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "MANIFEST",
    "alike",
    "check_file",
    "check_folder",
    "refuse_inside",
    "refuse_mounts",
    "sync",
    "sync_all",
    "try_to_write",
    "writing",
]

MANIFEST = "bundle.json"
MOUNTS = Path("/proc/self/mountinfo")  # Linux; the one list that knows mounts of a file system inside itself


def check_folder(path: Path) -> None:
    """Whether files can be written into a directory, which may be made for it.

    Raises ValueError inside a bundle, OSError where none can be written.
    """
    folder = _real(path)
    refuse_inside(folder, path)
    try_to_write(folder)


def check_file(path: Path, suffix: str = "") -> None:
    """Whether a file can be written, or the one that is there be replaced.

    Args:
        path: of the file.
        suffix: that it must have, with the point; any unless given.

    Raises:
        ValueError: in no directory, inside a bundle, over a directory, device or mount, or for another suffix.
        OSError: where none can be written.
    """
    target = _real(path)
    if not target.parent.is_dir():
        raise ValueError(f"{path.parent} is not a directory; create it first or choose another file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is not a file that can be replaced; name a new file, such as grid.png")
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"this writes {suffix[1:].upper()}, so the file ends with {suffix}; got {path.name!r}")
    refuse_inside(target.parent, path)
    refuse_mounts(target)
    try_to_write(target.parent)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A name to write to beside path, which takes its place when the block ends well and vanishes when it does not.

    A link stays, and what it leads to is replaced. Raises as check_file does.
    """
    check_file(path)
    target = _real(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        yield beside
        if target.exists():
            alike(target, beside)
        sync(beside)
        os.replace(beside, target)
        sync(target.parent)
    finally:
        beside.unlink(missing_ok=True)


def alike(old: Path, new: Path) -> None:
    """Give a file or directory the mode of another, and its owner where this is allowed.

    Args:
        old: whose mode and owner are taken.
        new: what gets them.
    """
    was, now = old.stat(), new.stat()
    if (was.st_dev, was.st_ino) == (now.st_dev, now.st_ino):
        return
    if hasattr(os, "chown") and (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
        with suppress(OSError):
            os.chown(new, was.st_uid, was.st_gid)
    shutil.copymode(old, new)


def sync_all(root: Path) -> None:
    """Have everything in a directory on the disk, so that a rename that survives a power cut finds it there."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    if sys.platform == "win32":  # which syncs no directories, and no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has nothing to sync
            raise
    finally:
        os.close(descriptor)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for links in a circle


def refuse_inside(folder: Path, path: Path) -> None:
    """Raise ValueError where a directory, into which path is to be written, is a bundle or lies in one.

    Args:
        folder: the directory, its links followed.
        path: as it was given, for the sentence.
    """
    for place in (folder, *folder.parents):
        if (place / MANIFEST).is_file():
            raise ValueError(
                f"{path} lies inside the bundle {place}, which holds only what its manifest lists; name another place"
            )


def refuse_mounts(path: Path) -> None:
    """Raise ValueError for a mount point, or what holds one: neither can be renamed and removed."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        points = [path] if os.path.ismount(path) else []
    else:  # the fifth field, in which spaces and the like are octal numbers
        names = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
        points = [point for point in map(Path, names) if point.is_relative_to(path)]
    for point in points:
        raise ValueError(
            f"{point} is a mount point, which cannot be replaced by renaming; use a directory below a mount, such as {point}/it"
        )


def try_to_write(folder: Path) -> None:
    """Raise OSError where nothing can be made in a directory, or in the nearest one there is above it. Modes do not tell it."""
    above = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        if sys.platform == "linux" and _takes_nameless_files(above):
            return
        with tempfile.TemporaryDirectory(prefix=".fewstep-", dir=above):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(above)) from None


def _takes_nameless_files(folder: Path) -> bool:
    """Make a file without a name, of which nothing stays; False where the file system has none. Raises OSError."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return False
        raise
    return True

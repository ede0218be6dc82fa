"""Directories that are replaced as a whole or not at all, by one process at a time.

Beside NAME lie, while it is replaced, .NAME.lock (empty, and its lock held), .NAME.new (being written) and .NAME.old (what NAME
was, between two renames). What of them a killed process leaves says how far it came:

    NAME and .NAME.new                  it was still writing: .NAME.new goes
    .NAME.old and .NAME.new, no NAME    it stood between the two renames: .NAME.old is NAME again
    .NAME.old without .NAME.new         it had ended but for the cleaning: .NAME.old goes, also where NAME was removed since

These names are fewstep's: what else lies under them goes when NAME is replaced.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewstep.system.places import alike, refuse_inside, refuse_mounts, sync, sync_all, try_to_write

if sys.platform != "win32":
    import fcntl

__all__ = ["assembled", "check_place", "locked", "recover", "staged"]


def check_place(path: Path) -> None:
    """Whether a directory can be made at path, or the one that is there be replaced as a whole, to be asked before the work.

    Raises OSError where it cannot be written or moved, ValueError inside a bundle and for mount points.
    """
    root = Path(os.path.realpath(path))
    refuse_inside(root.parent, path)
    refuse_mounts(root)
    try_to_write(root.parent)
    if root.is_dir():
        with suppress(_BusyError), locked(_sibling(root, "lock"), busy="") as held:
            _clear(root)
            _try_to_move(root, held)


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A fresh directory beside root that takes root's place when the block ends well, and vanishes when it does not.

    What root has, too, gets the mode that it has there, as root itself does. Waits while another process has one for the same
    root.

    Raises, before the block, what check_place raises, and OSError where something that a killed process left cannot be removed;
    after it, ValueError where root was made or removed meanwhile.
    """
    check_place(root)
    staging, old = _sibling(root, "new"), _sibling(root, "old")
    with locked(_sibling(root, "lock")):
        _clear(root)
        before = root.exists()
        staging.mkdir()
        if before:
            staging.chmod(root.stat().st_mode & 0o7777 | 0o700)  # while nothing is in it
        try:
            yield staging
            _like(root, staging)
            sync_all(staging)
            if root.exists() != before:
                raise ValueError(f"{root} was {'removed' if before else 'made'} meanwhile; nothing was written there")
            if before:
                os.rename(root, old)
            os.rename(staging, root)
        except BaseException:
            _put_back(root)
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync(root.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def assembled(root: Path) -> Iterator[Path]:
    """Where a directory for root is made in several steps, each of which may replace it as a whole; like `staged` otherwise.

    Yields:
        A path of root's name where nothing is yet, with nothing beside it. What is there at the end takes root's place.
    """
    with staged(root) as staging:
        within = staging / ".made"
        within.mkdir()
        yield within / root.name
        for each in (within / root.name).iterdir():
            os.rename(each, staging / each.name)
        shutil.rmtree(within)


def recover(root: Path) -> None:
    """Finish what a kill between the two renames of staged left: the old directory goes back to its place."""
    if _between_renames(root):
        with locked(_sibling(root, "lock")):
            _put_back(root)


class _BusyError(ValueError):
    """Another process holds a lock."""


@contextmanager
def locked(lock: Path, *, busy: str | None = None) -> Iterator[bool]:
    """Hold a directory that is there for nothing else against other processes; the operating system ends a killed one's hold.

    Waits for a process that holds it, unless `busy` is given.

    Args:
        lock: the directory; made where it is not there, and removed at the end.
        busy: a sentence to refuse with in place of waiting.

    Yields:
        Whether it is held: where directories cannot be locked, as on Windows, it is not.

    Raises:
        ValueError: with `busy`, where another process holds it.
    """
    descriptor, held = _locked(lock, busy)
    try:
        yield held
    finally:
        with suppress(OSError):
            lock.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _locked(lock: Path, busy: str | None) -> tuple[int | None, bool]:
    while True:
        try:
            lock.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            with suppress(FileNotFoundError):  # its holder removed it while mkdir looked what it is
                if not stat.S_ISDIR(lock.lstat().st_mode):
                    raise
            continue
        if sys.platform == "win32":
            return None, False
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its holder has just removed it
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy is not None:
                    raise _BusyError(busy) from None
                logging.getLogger(__name__).warning("waiting for another process, which holds %s", lock)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                return descriptor, False  # a file system without locks
            # The one that was waited for has removed the directory, and the lock with it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    return descriptor, True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _between_renames(root: Path) -> bool:
    return not root.exists() and _sibling(root, "old").is_dir() and _sibling(root, "new").is_dir()


def _put_back(root: Path) -> None:
    if _between_renames(root):
        os.rename(_sibling(root, "old"), root)


def _clear(root: Path) -> None:
    """Mend, or remove, what a killed process left. In this order: a .NAME.old beside a .NAME.new would be taken for NAME."""
    _put_back(root)
    _remove(_sibling(root, "old"))
    _remove(_sibling(root, "new"))


def _try_to_move(root: Path, held: bool) -> None:
    """Raise OSError unless root can be replaced: by its modes, and by renaming it onto a directory that is not empty.

    Which fails for that reason alone where it could be renamed: elsewhere, the file system may be made of layers that move no
    directory, or the place be sticky.
    """
    for folder, _, _ in os.walk(root):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
    if not held:  # another process might empty that directory meanwhile
        return
    probe = _sibling(root, "new")
    probe.mkdir()
    (probe / "full").touch()
    try:
        os.rename(root, probe)
    except OSError as error:
        shutil.rmtree(probe)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise type(error)(error.errno, error.strerror, str(root)) from None
    else:  # on a file system that does not keep to POSIX
        os.rename(probe, root)


def _remove(path: Path) -> None:
    """Remove a directory, a file or a link that may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _like(root: Path, staging: Path) -> None:
    """Modes of what is in both."""
    for path in [staging, *staging.rglob("*")]:
        old = root / path.relative_to(staging)
        if old.exists() and not old.is_symlink() and old.is_dir() == path.is_dir():
            alike(old, path)


def _sibling(root: Path, suffix: str) -> Path:
    return root.with_name(f".{root.name}.{suffix}")

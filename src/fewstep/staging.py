"""Directories that are replaced as a whole or not at all, by one process at a time."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["claimed", "recover", "staged"]


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A fresh directory beside root that takes root's place when the block ends well, and vanishes when it does not.

    Waits while another process has one for the same root.
    """
    staging, old = _sibling(root, "new"), _sibling(root, "old")
    with claimed(_sibling(root, "lock")):
        _put_back(root)
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        staging.mkdir()
        try:
            yield staging
            if root.exists():
                os.rename(root, old)
            os.rename(staging, root)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            _put_back(root)
            raise
        shutil.rmtree(old, ignore_errors=True)


def recover(root: Path) -> None:
    """Finish what a kill between the two renames of staged left: the old directory goes back to its place."""
    if not root.exists() and _sibling(root, "old").is_dir():
        with claimed(_sibling(root, "lock")):
            _put_back(root)


@contextmanager
def claimed(lock: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a directory that is there for nothing else against other processes; the operating system ends a killed one's hold.

    Waits for a process that holds it or, with busy, raises ValueError with that sentence. Holds nothing where directories
    cannot be locked, as on Windows.
    """
    descriptor = _locked(lock, busy)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _locked(lock: Path, busy: str | None) -> int | None:
    while True:
        lock.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            return None
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its holder has just removed it
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy:
                    raise ValueError(busy) from None
                logging.getLogger(__name__).warning("waiting for another process, which holds %s", lock)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                return descriptor  # a file system without locks
            # The one that was waited for has removed the directory, and the lock with it.
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _put_back(root: Path) -> None:
    old = _sibling(root, "old")
    if not root.exists() and old.is_dir():
        os.rename(old, root)


def _sibling(root: Path, suffix: str) -> Path:
    return root.with_name(f".{root.name}.{suffix}")

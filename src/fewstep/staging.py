"""Directories that are replaced as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["recover", "staged"]


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A fresh directory beside root that takes root's place when the block ends well, and vanishes when it does not."""
    staging, old = _sibling(root, "new"), _sibling(root, "old")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if root.exists():
            os.rename(root, old)
        os.rename(staging, root)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        recover(root)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(root: Path) -> None:
    """Finish what a kill between the two renames of staged left: the old directory goes back to its place."""
    old = _sibling(root, "old")
    if not root.exists() and old.is_dir():
        os.rename(old, root)


def _sibling(root: Path, suffix: str) -> Path:
    return root.with_name(f".{root.name}.{suffix}")

"""Where results lie that took long and can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_folder"]


def default_folder() -> Path:
    """$FEWSTEP_CACHE, or fewstep in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("FEWSTEP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fewstep")

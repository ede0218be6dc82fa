"""JSON files that people or other tools wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError where it holds none, OSError where it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object, which begins with {{; write it again")
    return found

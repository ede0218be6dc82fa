"""The class of a network that diffusers saved, by its configuration, which nobody vouches for. Needs safetensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fewstep.system.json_object import read_object
from fewstep.system.readable import readable

__all__ = ["class_of", "quiet"]


def class_of(directory: Path) -> str:
    """What config.json says.

    Raises ValueError where it is no configuration, or one of more layers than its weights have tensors: to build such a network
    takes for ever, before anybody looks at the weights.
    """
    config = read_object(directory / "config.json")
    with readable(f"the weights in {directory}", "copy them again from their source"):
        tensors = sum(_count(path) for path in directory.glob("*.safetensors"))
    for key, value in config.items():
        if ("layers" in key or key.endswith("blocks")) and (most := max(_numbers(value), default=0)) > tensors:
            raise ValueError(f"{directory}/config.json has {key} {most}, its weights have {tensors} tensors; copy it again")
    return str(config.get("_class_name"))


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, diffusers prints nothing of what it finds in files: what is wrong is refused."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _count(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return len(file.keys())


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield float(value)
    for inner in value if isinstance(value, list) else ():
        yield from _numbers(inner)

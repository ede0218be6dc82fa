"""Pictures of image grids. Needs Pillow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["grid", "refuse_path", "save_grid"]


def refuse_path(path: Path, suffix: str = "") -> None:
    """Raise ValueError where no file can be written, in no directory or over a directory or device; or for another suffix."""
    target = path.resolve()
    if not target.parent.is_dir():
        raise ValueError(f"{path.parent} is not a directory; create it first or choose another file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is not a file that can be replaced; name a new file, such as grid.png")
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"this writes {suffix[1:].upper()}, so the file ends with {suffix}; got {path.name!r}")


def grid(images: npt.NDArray[np.uint8], *, columns: int, scale: int = 1) -> Image.Image:
    """Images (B, H, W, C) uint8 as one picture, row by row, each pixel `scale` pixels wide."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    pixels = padded.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    pixels = pixels.reshape(rows * height, columns * width, channels).repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save_grid(path: Path, images: npt.NDArray[np.uint8], *, columns: int, scale: int = 1) -> None:
    """Write a grid as PNG; beside first, then in place. Raises ValueError as refuse_path does."""
    refuse_path(path)
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        grid(images, columns=columns, scale=scale).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Pictures of image grids. Needs Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.system.places import writing

__all__ = ["grid", "save_grid"]


def grid(images: npt.NDArray[np.uint8], *, columns: int, scale: int = 1) -> Image.Image:
    """Images (B, H, W, C) uint8 as one picture, row by row, each pixel `scale` pixels wide.

    Args:
        images: (B, H, W, C), of 1, 3 or 4 channels.
        columns: images in a row of the picture.
        scale: pixels of the picture for one of an image, in either direction.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    pixels = padded.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    pixels = pixels.reshape(rows * height, columns * width, channels).repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save_grid(path: Path, images: npt.NDArray[np.uint8], *, columns: int, scale: int = 1) -> None:
    """Write a grid as PNG.

    Args:
        path: of the file; one that is there is replaced.
        images, columns, scale: as for `grid`.

    Raises:
        ValueError: where no file may be, as `writing` says.
        OSError: where it cannot be written.
    """
    with writing(path) as beside:
        grid(images, columns=columns, scale=scale).save(beside, format="PNG")

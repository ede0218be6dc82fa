"""Images as one PNG or WebP."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from fewstep.system.picture import grid

__all__ = ["check_size", "encoded"]

COLUMNS = 8
MAX_PIXELS, MAX_SIDE = 1 << 25, 16383  # what takes seconds to compress, and what WebP can hold


def check_size(count: int, shape: tuple[int, ...], scale: int) -> int:
    """Bytes of the pixels of so many images in one picture.

    Args:
        count: of images.
        shape: of one, (H, W, C).
        scale: pixels of the picture for one of an image, in either direction.

    Raises:
        ValueError: where the picture would be too large.
    """
    image_height, image_width, channels = shape
    width = min(count, COLUMNS) * image_width * scale
    height = -(-count // COLUMNS) * image_height * scale
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"a picture has at most {MAX_PIXELS} pixels and {MAX_SIDE} on a side, this one would have {width} x {height}; "
            "ask for fewer images or a smaller scale"
        )
    return width * height * channels


def encoded(images: npt.NDArray[np.uint8], form: str, scale: int) -> bytes:
    """Images (B, H, W, C) as one file.

    Args:
        images: (B, H, W, C).
        form: png or webp.
        scale: pixels of the picture for one of an image, in either direction.
    """
    file = io.BytesIO()
    grid(images, columns=min(len(images), COLUMNS), scale=scale).save(file, form.upper(), lossless=True)
    return file.getvalue()

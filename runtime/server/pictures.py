"""POST /generate: images as a PNG or WebP."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fewstep.artifact.classes import MAX_CLASS_NAME
from fewstep.artifact.manifest import ImageSpec
from fewstep.runtime.noise import MAX_SEED
from fewstep.system.picture import grid

__all__ = ["GenerateRequest", "check_size", "encoded"]

COLUMNS = 8
ClassName = Annotated[str, Field(max_length=MAX_CLASS_NAME)]
MAX_PIXELS, MAX_SIDE = 1 << 25, 16383  # what takes seconds to compress, and what WebP can hold


class GenerateRequest(BaseModel):
    """What POST /generate takes. Labels are names or numbers. Several images come as one grid, the seed counting up."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    plan: str | None = None
    labels: Annotated[list[int | ClassName], Field(min_length=1, max_length=1024)] | None = None
    images: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - 2047)] = 0  # room for 1024, and a number that OpenAPI's floats hold
    format: Literal["png", "webp"] = "png"
    scale: Annotated[int, Field(ge=1, le=16)] = 1

    def seeds(self) -> list[int]:
        """A seed for every image; as many images as labels where there are some."""
        return [self.seed + i for i in range(len(self.labels) if self.labels else self.images)]


def check_size(asked: GenerateRequest, image: ImageSpec) -> int:
    """Bytes of the pixels. Raises ValueError where the picture would be too large, or none: scale is the sender's choice."""
    count = len(asked.seeds())
    width = min(count, COLUMNS) * image.width * asked.scale
    height = -(-count // COLUMNS) * image.height * asked.scale
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"a picture has at most {MAX_PIXELS} pixels and {MAX_SIDE} on a side, this one would have {width} x {height}; "
            "ask for fewer images or a smaller scale"
        )
    if image.channels > 4:
        raise ValueError(f"images of {image.channels} channels are no picture; ask for their numbers at /v2")
    return width * height * image.channels


def encoded(images: npt.NDArray[np.uint8], asked: GenerateRequest) -> bytes:
    """Images (B, H, W, C) as one file."""
    file = io.BytesIO()
    grid(images, columns=min(len(images), COLUMNS), scale=asked.scale).save(file, asked.format.upper(), lossless=True)
    return file.getvalue()

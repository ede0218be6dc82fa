"""POST /generate: images as a PNG or WebP."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fewstep.picture import grid
from fewstep.runtime.noise import MAX_SEED

__all__ = ["GenerateRequest", "encoded"]


class GenerateRequest(BaseModel):
    """What POST /generate takes. Several images come as one grid, the seed counting up from the first."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    plan: str | None = None
    labels: Annotated[list[int], Field(min_length=1, max_length=1024)] | None = None
    images: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - 1024)] = 0
    format: Literal["png", "webp"] = "png"
    scale: Annotated[int, Field(ge=1, le=16)] = 1

    def seeds(self) -> list[int]:
        """A seed for every image; as many images as labels where there are some."""
        return [self.seed + i for i in range(len(self.labels) if self.labels else self.images)]


def encoded(images: npt.NDArray[np.uint8], asked: GenerateRequest) -> bytes:
    """Images (B, H, W, C) as one file."""
    file = io.BytesIO()
    grid(images, columns=min(len(images), 8), scale=asked.scale).save(file, asked.format.upper(), lossless=True)
    return file.getvalue()

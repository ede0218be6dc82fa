"""What the layers of a network really see while a plan runs: the numbers that eight-bit formats need. Written by calibration."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, PositiveInt

__all__ = ["EightBit", "Interval", "LayerRanges", "Ranges"]

EightBit: TypeAlias = Literal["int8", "fp8"]
Interval: TypeAlias = tuple[float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class LayerRanges(_Strict):
    """(smallest, largest) value of a layer's input and output, one interval for each row of the plan."""

    input: list[Interval]
    output: list[Interval]


class Ranges(_Strict):
    """The convolutions and linear layers of a plan's network by name.

    kept: for each format, the layers that stay in higher precision because they hurt the image; psnr_db: the image's distance
    to fp32 with all layers quantised and with those left out.
    """

    plan: str
    samples: PositiveInt
    layers: dict[str, LayerRanges]
    kept: dict[EightBit, list[str]] = {}
    psnr_db: dict[EightBit, tuple[float, float]] = {}

"""What the layers of a network see while a plan runs: the numbers that eight-bit formats need. Written by calibration."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import Field, PositiveInt

from fewstep.artifact.spec import Precision
from fewstep.system.strict import Strict

__all__ = ["LARGEST_WEIGHT", "Interval", "LayerRanges", "Ranges"]

Interval: TypeAlias = tuple[float, float]
# Codes of weights are symmetric. In int8, the form for CPUs, they have 7 bits: x86 without VNNI adds two products with unsigned
# activations in 16 bits and cuts the sum off; 2 * 255 * 64 = 32,640 still fits. float8 E4M3 ends at 448.
LARGEST_WEIGHT: dict[Precision, float] = {"int8": 64.0, "int8-fp16": 127.0, "fp8": 448.0}


class LayerRanges(Strict):
    """(smallest, largest) value of a layer's input and output, one interval for each row of the plan."""

    input: list[Interval]
    output: list[Interval]


class Ranges(Strict):
    """The convolutions and linear layers of a plan's network by name.

    excluded: for each precision, the layers that stay in higher precision because they hurt the image; psnr_db: of the image
    against fp32 with all layers rounded and with those left out.
    """

    plan: str
    samples: PositiveInt
    layers: dict[str, LayerRanges]
    excluded: dict[Precision, list[str]] = Field(default={})
    psnr_db: dict[Precision, tuple[float, float]] = Field(default={})

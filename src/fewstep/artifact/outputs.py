"""What a model gives, and the state that its samplers walk on."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from fewstep.artifact.tensors import MAX_RANK, MAX_SIDE, Array, Name, Side, TensorSpec, Unit
from fewstep.system.strict import Strict

__all__ = ["ArrayOutput", "Axis", "Column", "ImageOutput", "Output", "Scaling", "State"]


class State(Strict):
    """What a sampler walks on: channels and the sides of as many axes as there are, (T,), (H, W) or (D, H, W)."""

    channels: Side
    axes: Annotated[tuple[Side, ...], Field(min_length=1, max_length=MAX_RANK, fail_fast=True)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *axes)"""
        return self.channels, *self.axes


class Scaling(NamedTuple):
    """How a sample x becomes an output: (x - low) factor + shift, each (1,) or one for every channel (C,).

    top: after that it is rounded and cut to 0 .. top; None for neither.
    """

    low: Array
    factor: Array
    shift: Array
    top: float | None

    def of(self, sample: Array) -> Array:
        """Samples (B, C, *axes) as outputs (B, *axes, C) in float64, before the last cast."""
        moved = np.moveaxis(sample.astype(np.float64), 1, -1)
        values: Array = (moved - self.low) * self.factor + self.shift
        return values if self.top is None else np.clip(np.round(values), 0, self.top)


class ImageOutput(Strict):
    """Images, uint8 (B, H, W, C). low, high: the numbers of a sample that 0 and 255 stand for."""

    kind: Literal["image"] = "image"
    channels: Side
    height: Side
    width: Side
    low: float = -1.0
    high: float = 1.0

    @model_validator(mode="after")
    def _black_is_below_white(self) -> Self:
        if not self.low < self.high:
            raise ValueError(
                f"low, which 0 stands for, is below high, which 255 stands for, got {self.low:g} and {self.high:g}"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def state(self) -> State:
        """What a sampler walks on that makes it without a decoder."""
        return State(channels=self.channels, axes=(self.height, self.width))

    @property
    def tensor(self) -> TensorSpec:
        """What a graph gives."""
        return TensorSpec("images", (self.height, self.width, self.channels), "uint8")

    @property
    def deviations(self) -> list[float]:
        """What a difference of one means in an output's numbers, by channel."""
        return [1.0] * self.channels

    @property
    def unscaled(self) -> ImageOutput:
        """What it is, whatever its numbers stand for."""
        return self

    @property
    def meaning(self) -> str:
        """What the numbers of its tensor are, in words."""
        return "0 to 255"

    @property
    def about(self) -> str:
        """What a person reads of it first."""
        return f"{self.height}x{self.width}, {self.channels} channels"

    def as_image(self, what: str) -> ImageOutput:  # noqa: ARG002
        """Itself, for `what` that takes images alone. Raises ValueError for an output of another kind."""
        return self

    @property
    def decodable(self) -> bool:
        """Whether a decoder makes it: images in [-1, 1]."""
        return (self.low, self.high) == (-1.0, 1.0)

    @property
    def pictures(self) -> bool:
        """Whether a sample is a picture, as PNG can hold it."""
        return self.channels <= 4

    @property
    def heads(self) -> tuple[list[str], list[str]]:
        """What a table of a sample's numbers says above them: of every axis, and of the last one's numbers."""
        return ["row", "column"], [f"channel {i}" for i in range(self.channels)]

    @property
    def facts(self) -> dict[str, str]:
        """What a graph's metadata say of it."""
        return {"low": f"{self.low:g}", "high": f"{self.high:g}"}

    @property
    def span(self) -> float:
        """From the least number of a sample to the largest, where `scale` is 1."""
        return self.high - self.low

    def scale(self, sample: Array) -> float:
        """What differences from a sample are counted in: image values, and more where it leaves their range."""
        return max(1.0, float(np.abs(sample).max()))

    def rounding(self, values: Array) -> Array:  # noqa: ARG002
        """How far an output may be from these, which `scaling` gave: by a level."""
        return np.ones(1)

    @property
    def scaling(self) -> Scaling:
        """How a sample becomes an output."""
        low, levels = np.array([self.low]), np.array([255 / (self.high - self.low)])
        return Scaling(low, levels, np.zeros(1), 255.0)


class Axis(Strict):
    """An axis of an array: what it counts, how far, and in which unit, "" where it has none."""

    name: Name
    size: Side
    unit: Unit = ""


class Column(Strict):
    """A number of every element of an array: its name and unit, and the mean and deviation that samples are free of."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    unit: Unit = ""
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0


class ArrayOutput(Strict):
    """Numbers in the data's own units, float32 (B, *axes, columns): mean + std x, column by column, of a sample x."""

    kind: Literal["array"] = "array"
    axes: Annotated[tuple[Axis, ...], Field(min_length=1, max_length=MAX_RANK, fail_fast=True)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=MAX_SIDE, fail_fast=True)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, (columns, *axes)."""
        return len(self.columns), *(axis.size for axis in self.axes)

    @property
    def state(self) -> State:
        """What a sampler walks on that makes it without a decoder."""
        return State(channels=len(self.columns), axes=self.shape[1:])

    @property
    def tensor(self) -> TensorSpec:
        """What a graph gives."""
        return TensorSpec("values", (*self.shape[1:], self.shape[0]), "float32")

    @property
    def deviations(self) -> list[float]:
        """What a difference of one means in an output's numbers, by channel."""
        return [column.std for column in self.columns]

    @property
    def unscaled(self) -> ArrayOutput:
        """What it is, without mean and deviation, which are those of some data set."""
        columns = tuple(Column(name=column.name, unit=column.unit) for column in self.columns)
        return self.model_copy(update={"columns": columns})

    @property
    def meaning(self) -> str:
        """What the numbers of its tensor are, in words."""
        return "in units: " + ", ".join(map(_with_unit, self.columns))

    @property
    def about(self) -> str:
        """What a person reads of it first."""
        axes = " x ".join(f"{axis.size} {_with_unit(axis)}" for axis in self.axes)
        return f"{axes}, columns {', '.join(map(_with_unit, self.columns))}"

    def as_image(self, what: str) -> ImageOutput:
        """Itself, for `what` that takes images alone. Raises ValueError for an output of another kind."""
        raise ValueError(f"{what} takes images, and this bundle gives arrays; name a bundle of images")

    @property
    def decodable(self) -> bool:
        """Whether a decoder makes it: images in [-1, 1]."""
        return False

    @property
    def pictures(self) -> bool:
        """Whether a sample is a picture, as PNG can hold it."""
        return False

    @property
    def heads(self) -> tuple[list[str], list[str]]:
        """What a table of a sample's numbers says above them: of every axis, and of the last one's numbers."""
        return [_with_unit(axis) for axis in self.axes], [_with_unit(column) for column in self.columns]

    @property
    def facts(self) -> dict[str, str]:
        """What a graph's metadata say of it."""
        axes, columns = self.heads
        free = "\n".join(f"{column.mean:.9g} {column.std:.9g}" for column in self.columns)
        return {"axes": "\n".join(axes), "columns": "\n".join(columns), "mean_std": free}

    @property
    def span(self) -> float:
        """From the least number of a sample to the largest, where `scale` is 1."""
        return 2.0

    def scale(self, sample: Array) -> float:
        """What differences from a sample are counted in: its largest number."""
        return float(np.abs(sample).max()) or 1.0

    def rounding(self, values: Array) -> Array:
        """How far an output may be from these, which `scaling` gave: by a little of each column's numbers, (columns,)."""
        mean = np.abs(self.scaling.shift)
        most: Array = 1e-5 * (np.abs(values).reshape(-1, len(mean)).max(0) + mean)
        return most

    @property
    def scaling(self) -> Scaling:
        """How a sample becomes an output."""
        std, mean = (np.array([getattr(column, key) for column in self.columns]) for key in ("std", "mean"))
        return Scaling(np.zeros(1), std, mean, None)


def _with_unit(of: Axis | Column) -> str:
    return f"{of.name} ({of.unit})" if of.unit else of.name


Output = Annotated[ImageOutput | ArrayOutput, Field(discriminator="kind")]

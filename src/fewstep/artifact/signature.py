"""What a model is told and what it gives: named inputs, each with what means "none", a state, and one output.

Whoever checks, batches, drops, draws or serves inputs loops over a signature; nobody asks which kind one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fewstep.artifact.classes import Classes, check_class_names
from fewstep.system.strict import Strict

__all__ = [
    "NEGATIVE",
    "ArrayInput",
    "ArrayOutput",
    "Axis",
    "Column",
    "ImageOutput",
    "Input",
    "LabelInput",
    "Output",
    "Scaling",
    "Signature",
    "State",
    "TensorSpec",
]

# What a manifest says must not make a reader take all memory.
MAX_SIDE = 1 << 14
MAX_SIZE = 1 << 20  # classes, tokens, numbers in a vector
MAX_RANK = 6
MAX_INPUTS = 32
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Shape = Annotated[tuple[Annotated[int, Field(gt=0, le=MAX_SIZE)], ...], Field(max_length=MAX_RANK, fail_fast=True)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Unit = Annotated[str, Field(max_length=32)]
NEGATIVE = "negative_"
RESERVED = {"noise", "seeds", "x", "scales", "guidance_scale", "denoised", "sample", "images", "values"}  # of graphs
RESERVED |= {"plan", "on_step", "out", "timeout_s", "model", "samples", "seed", "format", "scale"}  # of calls and requests
Array = npt.NDArray[Any]


class TensorSpec(NamedTuple):
    """A tensor of a graph. shape: of one sample, without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int64", "float32", "uint8"]


class LabelInput(Strict):
    """A class by its number, 0 .. classes - 1, or by its name. The number `classes` means "none", unless null is false."""

    kind: Literal["label"] = "label"
    name: Name = "labels"
    classes: Annotated[int, Field(gt=0, le=MAX_SIZE)]
    names: Annotated[tuple[str, ...], Field(max_length=MAX_SIZE, fail_fast=True)] = ()
    null: bool = True

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        check_class_names(self.names, self.classes)
        return self

    @property
    def tensor(self) -> TensorSpec:
        """What a graph takes for it."""
        return TensorSpec(self.name, (), "int64")

    @property
    def null_tensor(self) -> TensorSpec | None:
        """What a guided graph takes besides; None where what means "none" is fixed, or nothing does."""
        return None

    @property
    def null_constant(self) -> Array | None:
        """What means "none", for one sample; None where it comes with every call, or nothing does."""
        return np.array(self.classes) if self.null else None

    @property
    def guidable(self) -> bool:
        """Whether something means "none"."""
        return self.null

    @property
    def choices(self) -> int | None:
        """How many different values can be given; None for numbers without end."""
        return self.classes

    @property
    def values(self) -> int | None:
        """The same, with "none" among them."""
        return self.classes + 1

    @property
    def meaning(self) -> str:
        """What the numbers of its tensor are, in words."""
        return f"0 to {self.classes - 1} for a class" + (f", {self.classes} for none" if self.null else "")

    @property
    def facts(self) -> dict[str, str]:
        """What a graph's metadata say of it."""
        return {self.name: f"{self.classes} classes", f"{self.name}.names": "\n".join(self.names)}

    @property
    def about(self) -> str:
        """What a person reads of it first."""
        named = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
        return f"{self.classes} classes" + (f" ({named})" if named else "")

    def called(self, values: Array) -> list[str]:
        """The names of some values; none where they have no names."""
        return [self.names[i] for i in values.tolist()] if self.names else []

    def checked(self, given: Any, batch: int) -> Array:
        """Classes, by name or number, as their numbers (B,). None draws without a class.

        Raises:
            ValueError: for a class there is not, another count, or None where no number means it.
        """
        if given is None:
            if not self.null:
                raise ValueError(f"this bundle knows no image without a class; give {self.name}, 0 to {self.classes - 1}")
            return np.full(batch, self.classes)
        try:
            values = np.asarray(given)
        except ValueError:  # lists of several lengths
            values = np.asarray(given, object)
        if values.shape != (batch,) or values.dtype.kind not in "iuU":
            raise ValueError(
                f"{self.name} are names or whole numbers, one per seed ({batch}), got {values.dtype} of shape {values.shape}"
            )
        classes = _classes(self.classes, self.names)
        listed = given.tolist() if isinstance(given, np.ndarray) else given  # an array makes text of numbers beside names
        return np.array([classes.number(label) for label in listed])

    def example(self, batch: int) -> Array:
        """Every class in turn, (B,)."""
        return np.arange(batch) % self.classes


@lru_cache(maxsize=64)
def _classes(count: int, names: tuple[str, ...]) -> Classes:
    """The same for equal ones: of many names a table takes longer to make than a small image."""
    return Classes(count, names)


class ArrayInput(Strict):
    """Numbers of a fixed shape, float32: embeddings of a prompt, what a robot sees. null: how "none" is said.

    given: by a second tensor, called negative_NAME, that comes with every guided call; zeros: by zeros; None: by nothing.
    """

    kind: Literal["array"] = "array"
    name: Name
    shape: Shape
    null: Literal["given", "zeros"] | None = None

    @property
    def tensor(self) -> TensorSpec:
        """What a graph takes for it."""
        return TensorSpec(self.name, self.shape, "float32")

    @property
    def null_tensor(self) -> TensorSpec | None:
        """What a guided graph takes besides; None where what means "none" is fixed, or nothing does."""
        return TensorSpec(NEGATIVE + self.name, self.shape, "float32") if self.null == "given" else None

    @property
    def null_constant(self) -> Array | None:
        """What means "none", for one sample; None where it comes with every call, or nothing does."""
        return np.zeros(self.shape, np.float32) if self.null == "zeros" else None

    @property
    def guidable(self) -> bool:
        """Whether something means "none"."""
        return self.null is not None

    @property
    def choices(self) -> int | None:
        """How many different values can be given; None for numbers without end."""
        return None

    @property
    def values(self) -> int | None:
        """The same, with "none" among them."""
        return None

    @property
    def meaning(self) -> str:
        """What the numbers of its tensor are, in words."""
        return f"{self.name.replace('_', ' ')}, finite" + (", zeros for none" if self.null == "zeros" else "")

    @property
    def facts(self) -> dict[str, str]:
        """What a graph's metadata say of it."""
        return {self.name: "x".join(map(str, self.shape))}

    @property
    def about(self) -> str:
        """What a person reads of it first."""
        return f"{self.name} {'x'.join(map(str, self.shape))}".rstrip()

    def called(self, values: Array) -> list[str]:  # noqa: ARG002
        """The names of some values; none where they have no names."""
        return []

    def checked(self, given: Any, batch: int) -> Array:
        """Numbers (B, *shape) float32. None is what means "none", where that is fixed.

        Raises:
            ValueError: for another shape or type, numbers that are not finite, or None where it is not fixed.
        """
        if given is None:
            if self.null_constant is None:
                raise ValueError(f"{self.name} is an array {(batch, *self.shape)} for {batch} seeds, and is missing; give it")
            return np.broadcast_to(self.null_constant, (batch, *self.shape))
        return checked_numbers(self.name, given, (batch, *self.shape))

    def example(self, batch: int) -> Array:
        """Random numbers, the same always, (B, *shape)."""
        return np.random.default_rng(0).standard_normal((batch, *self.shape), np.float32)


def checked_numbers(name: str, given: Any, shape: tuple[int, ...]) -> Array:
    """An array of finite float32. Raises ValueError for another shape or type."""
    try:
        values = np.asarray(given, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} holds numbers only ({str(error)[:200]})") from None
    if values.shape != shape:
        raise ValueError(f"{name} has shape {shape} for {shape[0]} seeds, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has numbers that are not finite; nothing can be made from them")
    return values


Input = Annotated[LabelInput | ArrayInput, Field(discriminator="kind")]


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


class Signature(Strict):
    """What a model is told, in the order in which its networks and graphs take it, and what it gives."""

    inputs: Annotated[tuple[Input, ...], Field(max_length=MAX_INPUTS, fail_fast=True)] = ()
    output: Output

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [spec.name for spec in self.tensors(guided=True)]
        if twice := sorted({name for name in names if names.count(name) > 1 or name in RESERVED}):
            what = "every input has a name that no other tensor of a graph, and no field of a request, has"
            raise ValueError(f"{what}, got {twice[0]!r}; choose another")
        return self

    @property
    def guidable(self) -> bool:
        """Whether every input has something that means "none", for guidance to go away from."""
        return bool(self.inputs) and all(each.guidable for each in self.inputs)

    @property
    def finite(self) -> bool:
        """Whether every input has finitely many values, so that samples can be made without anyone's data."""
        return all(each.values is not None for each in self.inputs)

    @property
    def labels(self) -> LabelInput | None:
        """The classes that samples are made from; None where they are made from other things, or from nothing."""
        return next((each for each in self.inputs if isinstance(each, LabelInput)), None)

    @property
    def tabled(self) -> Input | None:
        """The one input of finitely many values, for which tables can be made; None where there is none, or several."""
        finite = [each for each in self.inputs if each.values is not None]
        return finite[0] if len(finite) == 1 else None

    def tensors(self, *, guided: bool) -> tuple[TensorSpec, ...]:
        """What graphs take of it; guided ones also what means "none", where that comes with every call."""
        given = tuple(each.tensor for each in self.inputs)
        return given + (tuple(each.null_tensor for each in self.inputs if each.null_tensor) if guided else ())

    def checked(self, given: Mapping[str, Any], batch: int, *, guided: bool) -> dict[str, Array]:
        """Values by the names of inputs as tensors (batch, ...) by the names of graphs.

        Raises:
            ValueError: for an input there is not, one that is missing, or values of another kind.
        """
        wanted = {spec.name for spec in self.tensors(guided=guided)}
        if unknown := sorted(given.keys() - wanted):
            takes = f"takes {', '.join(sorted(wanted))}" if wanted else "takes no inputs"
            raise ValueError(f"this bundle {takes}, got {unknown[0][:80]}; leave that out")
        found: dict[str, Array] = {}
        for each in self.inputs:
            found[each.name] = each.checked(given.get(each.name), batch)
            if guided and (null := each.null_tensor):
                if null.name not in given:
                    raise ValueError(
                        f"this plan is guided away from {null.name} {(batch, *null.shape)}, which is missing; give it"
                    )
                found[null.name] = checked_numbers(null.name, given[null.name], (batch, *null.shape))
        return found

    def example(self, batch: int, *, guided: bool) -> dict[str, Array]:
        """Values of every tensor of a graph, the same always."""
        found = {each.name: each.example(batch) for each in self.inputs}
        nulls = [spec.name for spec in self.tensors(guided=guided) if spec.name not in found]
        return found | {name: found[name.removeprefix(NEGATIVE)][::-1].copy() for name in nulls}

"""What a model is told: inputs by name, each with what means "none"."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fewstep.artifact.classes import Classes, check_class_names
from fewstep.artifact.tensors import MAX_SIZE, Array, Name, Shape, TensorSpec
from fewstep.system.strict import Strict

__all__ = ["NEGATIVE", "ArrayInput", "Input", "LabelInput", "checked_numbers"]

NEGATIVE = "negative_"


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
        """How many rows a network has for them: one more, for "none", also where nobody may ask for it."""
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

        Args:
            given: one for each sample, (B,).
            batch: B.

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

        Args:
            given: whatever numpy makes an array of, (B, *shape).
            batch: B.

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
    """An array of finite float32.

    Args:
        name: for the sentences.
        given: whatever numpy makes an array of.
        shape: with the batch first.

    Raises:
        ValueError: for another shape or type, or numbers that are not finite.
    """
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

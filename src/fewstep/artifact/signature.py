"""What a model is told and what it gives: named inputs, each with what means "none", a state, and one output.

Whoever checks, batches, drops, draws or serves inputs loops over a signature; nobody asks which kind one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fewstep.artifact.inputs import NEGATIVE, ArrayInput, Input, LabelInput, checked_numbers
from fewstep.artifact.outputs import ArrayOutput, Axis, Column, ImageOutput, Output, Scaling, State
from fewstep.artifact.tensors import MAX_SIZE, Array, TensorSpec
from fewstep.system.strict import Strict

__all__ = [
    "MAX_SIZE",
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

MAX_INPUTS = 32
RESERVED = {"noise", "seeds", "x", "scales", "guidance_scale", "denoised", "sample", "images", "values"}  # of graphs
RESERVED |= {"plan", "on_step", "out", "timeout_s", "model", "samples", "seed", "format", "scale"}  # of calls and requests


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

    def alike(self, other: Signature) -> bool:
        """Whether samples of both are of one kind: the same inputs in any order, outputs alike but for mean and deviation."""
        ours, theirs = ({each.name: each for each in of.inputs} for of in (self, other))
        return ours == theirs and self.output.unscaled == other.output.unscaled

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

        Args:
            given: classes by name or number (B,), arrays (B, ...); what is left out, or None, means "none" where something
                fixed does.
            batch: B, how many samples.
            guided: whether negative_NAME is needed, too, where that comes with every call.

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
        """Values of every tensor of a graph, the same always.

        Args:
            batch: how many samples.
            guided: whether what means "none" is among them, where that comes with every call.

        Returns:
            By name, (batch, ...).
        """
        found = {each.name: each.example(batch) for each in self.inputs}
        nulls = [spec.name for spec in self.tensors(guided=guided) if spec.name not in found]
        return found | {name: found[name.removeprefix(NEGATIVE)][::-1].copy() for name in nulls}

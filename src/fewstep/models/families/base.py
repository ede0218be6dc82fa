"""What a family of networks is: how its class is called, and what its configuration must agree on with a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from fewstep.artifact.components import Constant
from fewstep.artifact.signature import ArrayInput, Input, LabelInput

__all__ = ["Constants", "Facts", "Family", "Tensors", "classes_of", "shapes_of", "single"]

Facts: TypeAlias = dict[str, tuple[Any, Any]]  # key of the configuration -> (what it is, what the bundle needs)
Tensors: TypeAlias = Mapping[str, Tensor]
Constants: TypeAlias = Mapping[str, Constant]


def _as_they_are(_: Any, constants: Constants) -> dict[str, Tensor]:
    if constants:
        raise ValueError(f"this network has no use for the constants {', '.join(sorted(constants))}; leave them out")
    return {}


@dataclass(frozen=True)
class Family:
    """One network class.

    Args:
        kind: the class of diffusers.
        takes: names of the inputs it may take, in the order of its signature; those in `optional` may lack.
        call: F(net, x, timestep, inputs, constants); timestep (1,) or (B,), inputs by name with a batch, constants as `tensors`
            made them.
        facts: what must hold between a configuration, a signature's inputs and the constants.
        tensors: what the network is told of its constants, computed once, from its configuration.
    """

    kind: str
    takes: tuple[str, ...]
    call: Callable[[Any, Tensor, Tensor, Tensors, Tensors], Tensor]
    facts: Callable[[Any, Sequence[Input], Constants], Facts]
    optional: tuple[str, ...] = ()
    tensors: Callable[[Any, Constants], dict[str, Tensor]] = _as_they_are

    def refuse_inputs(self, inputs: Sequence[Input]) -> None:
        """Raises ValueError for inputs that the network does not take, or where it needs others."""
        names = [each.name for each in inputs]
        needed = [name for name in self.takes if name not in self.optional]
        if names != [name for name in self.takes if name in names] or not set(needed) <= set(names):
            takes = ", ".join(f"{name}, if any" if name in self.optional else name for name in self.takes) or "nothing"
            raise ValueError(
                f"a {self.kind} takes {takes}, the bundle has {', '.join(names) or 'nothing'}; choose a network of another "
                "class or other inputs"
            )


def classes_of(inputs: Sequence[Input]) -> int | None:
    """How many classes the labels have; None where there are none."""
    return next((each.classes for each in inputs if isinstance(each, LabelInput)), None)


def shapes_of(inputs: Sequence[Input]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays among inputs, by name."""
    return {each.name: each.shape for each in inputs if isinstance(each, ArrayInput)}


def single(width: Any) -> Any:
    """One width where all levels have the same."""
    return width[0] if isinstance(width, list | tuple) and len(set(width)) == 1 else width

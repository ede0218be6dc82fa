"""What a family of networks is: how its class is called, and what its configuration must agree on with a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from fewstep.artifact.classes import class_names_of
from fewstep.artifact.components import Constant
from fewstep.artifact.signature import MAX_SIZE, Input

__all__ = [
    "Asked",
    "Constants",
    "Facts",
    "Family",
    "Pipeline",
    "Tensors",
    "Told",
    "classes_of",
    "middle_of_blocks",
    "shapes_of",
    "single",
]

Facts: TypeAlias = dict[str, tuple[Any, Any]]  # key of the configuration -> (what it is, what the bundle needs)
Tensors: TypeAlias = Mapping[str, Tensor]
Constants: TypeAlias = Mapping[str, Constant]


def _as_they_are(_: Any, constants: Constants) -> dict[str, Tensor]:
    if constants:
        raise ValueError(f"this network has no use for the constants {', '.join(sorted(constants))}; leave them out")
    return {}


def _middle_block(net: Any) -> nn.Module:
    """The middle of a U-Net: its middle block or, without one, its last level."""
    middle: nn.Module = net.mid_block if net.mid_block is not None else net.down_blocks[-1]
    return middle


def middle_of_blocks(net: Any) -> nn.Module:
    """The middle one of a transformer's blocks."""
    block: nn.Module = net.transformer_blocks[len(net.transformer_blocks) // 2]
    return block


def _nothing_more(_: Tensors) -> dict[str, Any]:
    return {}


class Pipeline(NamedTuple):
    """A pipeline class of diffusers around a network.

    Args:
        steps: its default.
        guidance: its default guidance scale, 1 where it has none.
        sigmas: the noise levels that it tells its scheduler for so many steps, where it does not leave them to it.
        more: further arguments of its call, such as masks, of the tensors (1, ...) that it gets by the names of inputs, and
            by negative_NAME of what means "none".
    """

    steps: int
    guidance: float = 1.0
    sigmas: Callable[[int], list[float]] | None = None
    more: Callable[[Tensors], Mapping[str, Any]] = _nothing_more


@dataclass(frozen=True)
class Asked:
    """What an import knows besides a network's configuration.

    Args:
        root: where the checkpoint lies, for sentences.
        tokens: of a prompt, where an option says so.
        null_class: the last class means "none".
        guidance: a network's embedded guidance scale, where an option says so; default_guidance: of its pipeline.
        size: of images, height and width in pixels.
        about: configuration of another part, by its folder and file; empty where there is none.
        index: the pipeline's own, model_index.json.
        notes: sentences for people, to add to.
    """

    root: str
    tokens: int | None
    null_class: bool
    guidance: float | None
    default_guidance: float
    size: tuple[int, int]
    about: Callable[[str, str], Mapping[str, Any]]
    index: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    def embedded_guidance(self) -> float:
        """The scale that a network is told which embeds it, and a note that says so."""
        scale = self.default_guidance if self.guidance is None else self.guidance
        self.notes.append(
            f"the network embeds its guidance scale, which is {scale:g} in this bundle; give --guidance for another"
        )
        return scale

    def class_names(self, count: int) -> tuple[str, ...]:
        """What the pipeline calls so many classes; () where it does not say. Raises ValueError where it names others."""
        id2label = self.index.get("id2label")
        return class_names_of(count, id2label) if id2label else ()

    def prompt_tokens(self, kind: str, *, known: bool) -> int:
        """How many tokens a prompt has: as an option says or, where that is `known`, the tokenizer.

        Args:
            kind: of the network, for the sentence.
            known: whether the tokenizer's own length is that of prompts.

        Raises:
            ValueError: where neither says it.
        """
        written = self.about("tokenizer", "tokenizer_config.json").get("model_max_length") if known else None
        tokens = self.tokens or written
        if not tokens or tokens > MAX_SIZE:
            raise ValueError(f"how many tokens a prompt of this {kind} has is not written in {self.root}; say so with --tokens")
        return int(tokens)


Told = tuple[tuple[Input, ...], dict[str, Constant]]  # inputs of a network, and its constants


def _not_imported(net: Any, _: Asked) -> Told:
    raise ValueError(
        f"the family of a {type(net).__name__} has no `read`, which says what inputs a checkpoint has; write it, or train a "
        "network of this class from its configuration"
    )


# What makes a network take more than its class does by itself, and the values that are driven.
DRIVEN: Mapping[str, tuple[Any, ...]] = {
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None,),
}


@dataclass(frozen=True)
class Family:
    """One network class.

    Args:
        kind: the class's name, of diffusers unless `network` is another.
        takes: names of the inputs it may take, in the order of its signature; those in `optional` may lack. None: those in
            `inputs` of its configuration.
        call: F(net, x, timestep, inputs, constants); timestep (1,) or (B,), inputs by name with a batch, constants as `tensors`
            made them.
        facts: what must hold between a configuration, a signature's inputs and the constants.
        tensors: what the network is told of its constants, computed once, from its configuration.
        axes: how many axes its states have; None for any number.
        middle: where a discriminator takes its features, (B, tokens, C) with `tokens`, else (B, C, ...).
        network: the class itself, where it is none of diffusers.
        read: inputs and constants of an imported network, by its configuration and what else an import knows.
        driven: values of keys that are driven; with others the network is told what fewstep does not tell it.
        saved_as: keys by which older checkpoints of it are known, whose class has another name; `neutral` then are keys of that
            class's other uses, and the values with which they mean nothing.
        patch: pixels of a side that its pipelines fold into channels before it.
        pipelines: of diffusers, by the names of their classes.
    """

    kind: str
    takes: tuple[str, ...] | None
    call: Callable[[Any, Tensor, Tensor, Tensors, Tensors], Tensor]
    facts: Callable[[Any, Sequence[Input], Constants], Facts]
    optional: tuple[str, ...] = ()
    tensors: Callable[[Any, Constants], dict[str, Tensor]] = _as_they_are
    axes: int | None = 2
    tokens: bool = False
    middle: Callable[[Any], nn.Module] = _middle_block
    network: type[nn.Module] | None = None
    read: Callable[[Any, Asked], Told] = _not_imported
    driven: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: DRIVEN)
    saved_as: Mapping[str, Any] = field(default_factory=dict)
    neutral: Mapping[str, Any] = field(default_factory=dict)
    patch: int = 1
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Where it is written, for sentences."""
        return Path(getattr(getattr(self.call, "__code__", None), "co_filename", "its file")).name

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration under another name is of this class."""
        return bool(self.saved_as) and all(config.get(key) == value for key, value in self.saved_as.items())

    def names(self, config: Any) -> tuple[str, ...]:
        """The inputs it may take, in their order."""
        return tuple(name for name, _ in config.get("inputs", ())) if self.takes is None else self.takes

    def ordered(self, config: Mapping[str, Any], inputs: Sequence[Input]) -> tuple[Input, ...]:
        """Inputs in the order that it takes them: files of arrays have one of their own. Others come last."""
        names = self.names(config)
        return tuple(sorted(inputs, key=lambda each: names.index(each.name) if each.name in names else len(names)))

    def refuse_inputs(self, config: Any, inputs: Sequence[Input]) -> None:
        """Raises ValueError for inputs that the network does not take, or where it needs others.

        Args:
            config: of the network; read where the family takes what a configuration lists.
            inputs: of a signature, in its order.
        """
        names, may = [each.name for each in inputs], self.names(config)
        needed = [name for name in may if name not in self.optional]
        if names != [name for name in may if name in names] or not set(needed) <= set(names):
            takes = ", ".join(f"{name}, if any" if name in self.optional else name for name in may) or "nothing"
            raise ValueError(
                f"a {self.kind} takes {takes}, the bundle has {', '.join(names) or 'nothing'}; choose a network of another "
                "class or other inputs"
            )


def classes_of(inputs: Sequence[Input]) -> int | None:
    """How many classes there are; None where there are none."""
    return next((each.choices for each in inputs if each.choices is not None), None)


def shapes_of(inputs: Sequence[Input]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays among inputs, by name."""
    return {each.name: each.tensor.shape for each in inputs if each.choices is None}


def single(width: Any) -> Any:
    """One width where all levels have the same."""
    return width[0] if isinstance(width, list | tuple) and len(set(width)) == 1 else width

"""DiTTransformer2DModel, as which a Transformer2DModel of DiT is imported: latents of a class. Peebles and Xie 2023."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.artifact.signature import Input, LabelInput
from fewstep.models.families.base import Asked, Constants, Facts, Family, Pipeline, Tensors, Told, classes_of, middle_of_blocks

__all__ = ["FAMILY"]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=inputs["labels"], return_dict=False)[0]
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    return {"num_embeds_ada_norm": (config.num_embeds_ada_norm, classes_of(inputs))}  # it adds the one for "none" itself


def _read(net: Any, asked: Asked) -> Told:
    count = net.config.num_embeds_ada_norm
    return (LabelInput(classes=count, names=asked.class_names(count)),), {}


FAMILY = Family(
    "DiTTransformer2DModel",
    ("labels",),
    _call,
    _facts,
    tokens=True,
    middle=middle_of_blocks,
    read=_read,
    pipelines={"DiTPipeline": Pipeline(50, 4.0)},
    # The published DiT was saved under the name of an older class, with keys of its other uses.
    saved_as={"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"},
    neutral={
        "caption_channels": None,
        "attention_type": "default",
        "num_vector_embeds": None,
        "use_additional_conditions": None,
    },
)

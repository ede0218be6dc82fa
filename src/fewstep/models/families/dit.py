"""DiTTransformer2DModel, as which a Transformer2DModel of DiT is imported: latents of a class. Peebles and Xie 2023."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.artifact.signature import Input
from fewstep.models.families.base import Constants, Facts, Family, Tensors, classes_of

__all__ = ["FAMILY"]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=inputs["labels"], return_dict=False)[0]
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    return {"num_embeds_ada_norm": (config.num_embeds_ada_norm, classes_of(inputs))}  # it adds the one for "none" itself


FAMILY = Family("DiTTransformer2DModel", ("labels",), _call, _facts)

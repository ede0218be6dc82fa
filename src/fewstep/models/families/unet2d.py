"""UNet2DModel: pixels or latents, with a class or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.artifact.signature import Input
from fewstep.models.families.base import Constants, Facts, Family, Tensors, classes_of

__all__ = ["FAMILY"]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=inputs.get("labels"), return_dict=False)[0]
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    classes = classes_of(inputs)
    embeds = None if classes is None else classes + 1  # one more, for "none"
    return {"num_class_embeds": (config.num_class_embeds, embeds), "class_embed_type": (config.class_embed_type, None)}


FAMILY = Family("UNet2DModel", ("labels",), _call, _facts, optional=("labels",))

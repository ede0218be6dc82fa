"""UNet2DModel: pixels or latents, with a class or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.artifact.signature import Input, LabelInput
from fewstep.models.families.base import Asked, Constants, Facts, Family, Pipeline, Tensors, Told, classes_of

__all__ = ["FAMILY"]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=inputs.get("labels"), return_dict=False)[0]
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    classes = classes_of(inputs)
    embeds = None if classes is None else classes + 1  # one more, for "none"
    return {"num_class_embeds": (config.num_class_embeds, embeds), "class_embed_type": (config.class_embed_type, None)}


def _read(net: Any, asked: Asked) -> Told:
    """Whether its last class means "none" is not written; unless told, it is a class like the others."""
    count = net.config.num_class_embeds
    if not count:
        return (), {}
    if asked.null_class:
        return (LabelInput(classes=count - 1, names=asked.class_names(count - 1)),), {}
    known = net.class_embedding.weight.detach()
    weight = torch.cat([known, torch.zeros(1, known.shape[1])])  # bundles have a row for "none", which nobody reads here
    net.class_embedding = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    net.register_to_config(num_class_embeds=count + 1)
    asked.notes.append(
        f"all {count} classes are taken for classes, and nothing means none, so nothing can be guided; where the last one "
        "does, give --null-class"
    )
    return (LabelInput(classes=count, names=asked.class_names(count), null=False),), {}


FAMILY = Family(
    "UNet2DModel",
    ("labels",),
    _call,
    _facts,
    optional=("labels",),
    read=_read,
    pipelines={"DDPMPipeline": Pipeline(1000), "DDIMPipeline": Pipeline(50)},
)

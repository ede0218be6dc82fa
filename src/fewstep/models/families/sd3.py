"""SD3Transformer2DModel: Stable Diffusion 3. Esser et al. 2024, arXiv 2403.03206."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.artifact.signature import ArrayInput, Input
from fewstep.models.families.base import Asked, Constants, Facts, Family, Pipeline, Tensors, Told, middle_of_blocks, shapes_of

__all__ = ["FAMILY"]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    embeds, pooled = inputs["prompt_embeds"], inputs["pooled_prompt_embeds"]
    out: Tensor = net(x, embeds, pooled, timestep, return_dict=False)[0]
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    shapes = shapes_of(inputs)
    return {
        "joint_attention_dim": (config.joint_attention_dim, shapes["prompt_embeds"][-1]),
        "pooled_projection_dim": (config.pooled_projection_dim, shapes["pooled_prompt_embeds"][0]),
    }


def _read(net: Any, asked: Asked) -> Told:
    tokens = asked.prompt_tokens("SD3Transformer2DModel", known=False)  # of CLIP and T5, one after the other
    embeds = ArrayInput(name="prompt_embeds", shape=(tokens, net.config.joint_attention_dim), null="given")
    return (embeds, ArrayInput(name="pooled_prompt_embeds", shape=(net.config.pooled_projection_dim,), null="given")), {}


FAMILY = Family(
    "SD3Transformer2DModel",
    ("prompt_embeds", "pooled_prompt_embeds"),
    _call,
    _facts,
    tokens=True,
    middle=middle_of_blocks,
    read=_read,
    pipelines={"StableDiffusion3Pipeline": Pipeline(28, 7.0)},
)

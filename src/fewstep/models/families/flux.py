"""FluxTransformer2DModel: FLUX.1 dev, whose guidance scale is embedded, and schnell. Black Forest Labs 2024."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.artifact.components import Constant
from fewstep.artifact.signature import ArrayInput, Input
from fewstep.models.families.base import (
    Asked,
    Constants,
    Facts,
    Family,
    Pipeline,
    Tensors,
    Told,
    middle_of_blocks,
    shapes_of,
)

__all__ = ["FAMILY"]

PATCH = 2  # pixels of a side that its pipeline packs into one token
TIMES = 1000  # its timesteps are those of its schedulers over this


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, constants: Tensors) -> Tensor:
    """x (B, C, h, w) is packed already; a token for each of its pixels."""
    embeds, (height, width) = inputs["prompt_embeds"], x.shape[2:]
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    places = [torch.zeros(height * width, device=x.device), rows.repeat_interleave(width), columns.repeat(height)]
    out: Tensor = net(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=embeds,
        pooled_projections=inputs["pooled_prompt_embeds"],
        timestep=(timestep / TIMES).expand(x.shape[0]),
        img_ids=torch.stack(places, 1).to(x.dtype),
        txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
        guidance=constants["guidance"].expand(x.shape[0]) if "guidance" in constants else None,
        return_dict=False,
    )[0]
    return out.transpose(1, 2).reshape(x.shape[0], -1, height, width)


def _tensors(_: Any, constants: Constants) -> dict[str, Tensor]:
    """guidance (1,), what dev embeds."""
    if unknown := sorted(constants.keys() - {"guidance_scale"}):
        raise ValueError(f"a FluxTransformer2DModel has no use for the constant {unknown[0]!r}; leave it out")
    return {"guidance": torch.tensor([constants["guidance_scale"]])} if constants else {}


def _facts(config: Any, inputs: Sequence[Input], constants: Constants) -> Facts:
    shapes = shapes_of(inputs)
    return {
        "joint_attention_dim": (config.joint_attention_dim, shapes["prompt_embeds"][-1]),
        "pooled_projection_dim": (config.pooled_projection_dim, shapes["pooled_prompt_embeds"][0]),
        "guidance_embeds": (config.guidance_embeds, "guidance_scale" in constants),
    }


def _read(net: Any, asked: Asked) -> Told:
    config, constants = net.config, dict[str, Constant]()
    tokens = asked.prompt_tokens("FluxTransformer2DModel", known=False)  # of T5: 512 of dev, 256 of schnell, or fewer
    if config.guidance_embeds:
        constants["guidance_scale"] = asked.embedded_guidance()
    embeds = ArrayInput(name="prompt_embeds", shape=(tokens, config.joint_attention_dim))
    return (embeds, ArrayInput(name="pooled_prompt_embeds", shape=(config.pooled_projection_dim,))), constants


FAMILY = Family(
    "FluxTransformer2DModel",
    ("prompt_embeds", "pooled_prompt_embeds"),
    _call,
    _facts,
    tensors=_tensors,
    tokens=True,
    middle=middle_of_blocks,
    read=_read,
    patch=PATCH,
    pipelines={"FluxPipeline": Pipeline(28, 3.5, lambda steps: np.linspace(1.0, 1 / steps, steps).tolist())},
)

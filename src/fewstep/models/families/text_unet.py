"""UNet2DConditionModel: Stable Diffusion 1 and 2, SDXL with its sizes as constants, LCM with its guidance scale as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.artifact.components import Constant
from fewstep.artifact.signature import ArrayInput, Input
from fewstep.models.families.base import DRIVEN, Asked, Constants, Facts, Family, Pipeline, Tensors, Told, shapes_of, single

__all__ = ["FAMILY"]

TIME_IDS = 6  # of SDXL; its refiner has 5


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, constants: Tensors) -> Tensor:
    added = None
    if "time_ids" in constants:
        # float: the network joins it with sines in fp32 and casts after, and ONNX joins like with like only.
        pooled = inputs["pooled_prompt_embeds"].float()
        added = {"text_embeds": pooled, "time_ids": constants["time_ids"].expand(x.shape[0], -1)}
    scale = constants["guidance"].to(x.dtype) if "guidance" in constants else None
    out: Tensor = net(x, timestep, inputs["prompt_embeds"], timestep_cond=scale, added_cond_kwargs=added, return_dict=False)[0]
    return out


def _tensors(config: Any, constants: Constants) -> dict[str, Tensor]:
    """time_ids (n,); guidance (1, width), the embedding of LCM's guidance_scale."""
    if unknown := sorted(constants.keys() - {"time_ids", "guidance_scale"}):
        raise ValueError(f"a UNet2DConditionModel has no use for the constant {unknown[0]!r}; leave it out")
    found = {"time_ids": torch.tensor(constants["time_ids"], dtype=torch.float32)} if "time_ids" in constants else {}
    if "guidance_scale" in constants:
        found["guidance"] = _guidance(constants["guidance_scale"], config.time_cond_proj_dim)
    return found


def _guidance(scale: Any, width: int) -> Tensor:
    """Sines and cosines (1, width) of a guidance scale, as diffusers' pipelines give them to networks of LCM."""
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float32) * (-math.log(10000.0) / (width // 2 - 1)))
    angles = 1000 * (scale - 1) * frequencies
    return functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def _facts(config: Any, inputs: Sequence[Input], constants: Constants) -> Facts:
    shapes = shapes_of(inputs)
    (_, width), pooled = shapes["prompt_embeds"], shapes.get("pooled_prompt_embeds")
    ids = constants.get("time_ids", [])
    count = len(ids) if isinstance(ids, list) else 0
    wanted = (count or TIME_IDS) if pooled else 0
    told = "guidance_scale" in constants
    facts: Facts = {
        "time_ids": (count, wanted),
        "cross_attention_dim": (single(config.cross_attention_dim), width),
        "addition_embed_type": (config.addition_embed_type, "text_time" if pooled else None),
        "time_cond_proj_dim": (config.time_cond_proj_dim, config.time_cond_proj_dim if told else None),
    }
    for key in ("num_class_embeds", "class_embed_type", "encoder_hid_dim_type"):
        facts[key] = (config[key], None)
    if pooled:
        joined = pooled[0] + wanted * (config.addition_time_embed_dim or 0)
        facts["projection_class_embeddings_input_dim"] = (config.projection_class_embeddings_input_dim, joined)
    return facts


def _read(net: Any, asked: Asked) -> Told:
    config, constants = net.config, dict[str, Constant]()
    tokens, width = asked.prompt_tokens("UNet2DConditionModel", known=True), config.cross_attention_dim
    width = width[0] if isinstance(width, list | tuple) else width
    inputs = [ArrayInput(name="prompt_embeds", shape=(tokens, width), null="given")]
    if pooled := _pooled(config, asked):
        inputs.append(ArrayInput(name="pooled_prompt_embeds", shape=(pooled,), null="given"))
        constants["time_ids"] = [float(n) for n in (*asked.size, 0, 0, *asked.size)]
    if config.time_cond_proj_dim is not None:
        constants["guidance_scale"] = asked.embedded_guidance()
    return tuple(inputs), constants


def _pooled(config: Any, asked: Asked) -> int:
    """The width of SDXL's vector for a whole prompt, 0 for a network without one."""
    if config.addition_embed_type != "text_time":
        return 0
    pooled = int(config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim)
    told = asked.about("text_encoder_2", "config.json").get("projection_dim")
    if told is not None and told != pooled:
        ids = (config.projection_class_embeddings_input_dim - told) / config.addition_time_embed_dim
        raise ValueError(
            f"this network is told {ids:g} numbers besides the prompt, {TIME_IDS} are driven (SDXL's sizes and crop); a "
            "refiner has 5, and begins with an image"
        )
    return pooled


FAMILY = Family(
    "UNet2DConditionModel",
    ("prompt_embeds", "pooled_prompt_embeds"),
    _call,
    _facts,
    optional=("pooled_prompt_embeds",),
    tensors=_tensors,
    read=_read,
    driven={**DRIVEN, "addition_embed_type": (None, "text_time")},
    pipelines={
        "StableDiffusionPipeline": Pipeline(50, 7.5),
        "StableDiffusionXLPipeline": Pipeline(50, 5.0),
        "LatentConsistencyModelPipeline": Pipeline(4, 8.5),
    },
)

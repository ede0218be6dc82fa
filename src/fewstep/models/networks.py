"""How the network classes of diffusers are called, and what their configurations must agree on with a bundle.

Every class takes the same: a state, a timestep and the tensors of a Condition in their order. Needs torch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.artifact.spec import Condition

__all__ = ["NETWORKS", "Constants", "Family", "Given", "check_fit", "guidance_embedding", "network_class"]

Facts: TypeAlias = dict[str, tuple[Any, Any]]  # key of the configuration -> (what it is, what the bundle needs)


class Constants(NamedTuple):
    """What some networks are told besides: SDXL's time_ids (n,), the embedding of the guidance scale (1, width) of LCM."""

    time_ids: Tensor | None = None
    guidance: Tensor | None = None


class Given(NamedTuple):
    """Which constants there are: how many time_ids, and the guidance scale."""

    time_ids: int = 0
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Family:
    """One network class: `call` is F(net, x, timestep, condition, constants), timestep (1,) or (B,); `facts` what must hold."""

    conditions: tuple[str, ...]
    call: Callable[[Any, Tensor, Tensor, Sequence[Tensor], Constants], Tensor]
    facts: Callable[[Any, Condition, Given], Facts]


def _call_unet(net: Any, x: Tensor, timestep: Tensor, condition: Sequence[Tensor], _: Constants) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=condition[0] if condition else None, return_dict=False)[0]
    return out


def _unet_facts(config: Any, condition: Condition, _: Given) -> Facts:
    embeds = condition.classes + 1 if condition.kind == "labels" else None  # one more, for "none"
    return {"num_class_embeds": (config.num_class_embeds, embeds), "class_embed_type": (config.class_embed_type, None)}


def _call_dit(net: Any, x: Tensor, timestep: Tensor, condition: Sequence[Tensor], _: Constants) -> Tensor:
    out: Tensor = net(x, timestep, class_labels=condition[0], return_dict=False)[0]
    return out


def _dit_facts(config: Any, condition: Condition, _: Given) -> Facts:
    return {"num_embeds_ada_norm": (config.num_embeds_ada_norm, condition.classes)}  # it adds the one for "none" itself


def _call_text_unet(net: Any, x: Tensor, timestep: Tensor, condition: Sequence[Tensor], constants: Constants) -> Tensor:
    embeddings, *pooled = condition
    added = None
    if constants.time_ids is not None:
        # float: the network joins it with sines in fp32 and casts after, and ONNX joins like with like only.
        added = {"text_embeds": pooled[0].float(), "time_ids": constants.time_ids.expand(x.shape[0], -1)}
    scale = None if constants.guidance is None else constants.guidance.to(x.dtype)
    out: Tensor = net(x, timestep, embeddings, timestep_cond=scale, added_cond_kwargs=added, return_dict=False)[0]
    return out


def guidance_embedding(scale: float, width: int) -> Tensor:
    """Sines and cosines (1, width) of a guidance scale, as diffusers' pipelines give them to networks of LCM."""
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float32) * (-math.log(10000.0) / (width // 2 - 1)))
    angles = 1000 * (scale - 1) * frequencies
    return functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def _text_unet_facts(config: Any, condition: Condition, given: Given) -> Facts:
    time_ids = given.time_ids
    wanted_ids = (time_ids or 6) if condition.pooled else 0  # 6 in SDXL, 5 in its refiner
    facts: Facts = {
        "time_ids": (time_ids, wanted_ids),
        "cross_attention_dim": (_single(config.cross_attention_dim), condition.width),
        "addition_embed_type": (config.addition_embed_type, "text_time" if condition.pooled else None),
        "time_cond_proj_dim": (config.time_cond_proj_dim, None if given.guidance_scale is None else config.time_cond_proj_dim),
    }
    for key in ("num_class_embeds", "class_embed_type", "encoder_hid_dim_type"):
        facts[key] = (config[key], None)
    if condition.pooled:
        width = condition.pooled + wanted_ids * (config.addition_time_embed_dim or 0)
        facts["projection_class_embeddings_input_dim"] = (config.projection_class_embeddings_input_dim, width)
    return facts


def _call_sd3(net: Any, x: Tensor, timestep: Tensor, condition: Sequence[Tensor], _: Constants) -> Tensor:
    embeddings, pooled = condition
    out: Tensor = net(x, embeddings, pooled, timestep, return_dict=False)[0]
    return out


def _sd3_facts(config: Any, condition: Condition, _: Given) -> Facts:
    return {
        "joint_attention_dim": (config.joint_attention_dim, condition.width),
        "pooled_projection_dim": (config.pooled_projection_dim, condition.pooled),
    }


NETWORKS = {
    "UNet2DModel": Family(("none", "labels"), _call_unet, _unet_facts),
    "DiTTransformer2DModel": Family(("labels",), _call_dit, _dit_facts),
    "UNet2DConditionModel": Family(("embeddings",), _call_text_unet, _text_unet_facts),
    "SD3Transformer2DModel": Family(("embeddings",), _call_sd3, _sd3_facts),
}


def network_class(name: str) -> Any:
    """The diffusers class of this name. Raises ValueError for one that is not in NETWORKS; nothing else is imported."""
    if name not in NETWORKS:
        raise ValueError(f"the network is a {name}; this version of fewstep drives {', '.join(NETWORKS)}")
    return getattr(importlib.import_module("diffusers"), name)


def check_fit(net: Any, state: tuple[int, int, int], condition: Condition, *, patch: int, given: Given) -> None:
    """Raises ValueError unless a network can work on states (C, H, W), folded by patch, under this condition."""
    name = type(net).__name__
    family = NETWORKS[network_class(name).__name__]
    if condition.kind not in family.conditions:
        raise ValueError(
            f"a {name} takes {' or '.join(family.conditions)} as condition, the bundle has {condition.kind}; "
            "choose a network of another class or another condition"
        )
    channels, height, width = state[0] * patch**2, state[1] / patch, state[2] / patch
    size = net.config.sample_size if net.config.sample_size is not None else (height, width)
    facts: Facts = {
        "in_channels": (net.config.in_channels, channels),
        "sample_size": (tuple(size) if isinstance(size, list | tuple) else (size, size), (height, width)),
    }
    out = net.config.out_channels or channels  # twice as many where it learned its variance, too, which samplers leave aside
    facts["out_channels"] = (out, 2 * channels if out == 2 * channels else channels)
    for key, (found, wanted) in (facts | family.facts(net.config, condition, given)).items():
        if found != wanted:
            raise ValueError(
                f"this {name} has {key} {found}, the bundle needs {wanted}, with states {state} and patch {patch}; "
                "set it so, choose a network made for it, or change image, condition or patch"
            )


def _single(width: Any) -> Any:
    """One width where all levels have the same."""
    return width[0] if isinstance(width, list | tuple) and len(set(width)) == 1 else width

"""A state dict of EDM's ADM networks (Karras et al. 2022; Dhariwal and Nichol 2021) as a diffusers network.

The same layers under other names. Everything about the network is read from the names and shapes of its weights: NVIDIA's own
files are pickles, which execute code when they are read, so they are saved as tensors first, where that code is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifact.signature import Input, LabelInput
from fewstep.models.denoiser import Denoiser
from fewstep.models.families import network_class
from fewstep.sampling.parametrisation import Edm

__all__ = ["is_edm", "load_edm_weights"]

HEAD = 64  # channels of an attention head
GROUPS, LEAST = 32, 4  # of a normalisation: 32, or fewer where one would have less than 4 channels
BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
ENDS = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
OTHERS = ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "joint_blocks.")  # SD, SDXL, SD3, FLUX
LEVEL = re.compile(r"(enc|dec)\.(\d+)x\2_(conv|down|up|in\d|block\d+)\.(.+)")


def is_edm(path: Path) -> bool:
    """Whether a file is to be read here: all but a safetensors file of a whole pipeline, or of a network of another kind."""
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, "pt") as file:
            return not any(key.startswith(OTHERS) for key in file.keys())  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError):
        return True  # which says why it cannot be read


def load_edm_weights(path: Path, *, sigma_data: float = 0.5, null_class: bool = False) -> tuple[Denoiser, tuple[Input, ...]]:
    """The denoiser whose weights a file holds, and its inputs: class labels, or nothing.

    Args:
        path: .safetensors, or what torch.save wrote of a state dict; read as tensors alone.
        sigma_data: deviation of the data that it was trained on.
        null_class: it was trained without a class, too; else no label means "none".

    Raises:
        ValueError: for a file that is neither, or weights of another network.
    """
    weights = {key.removeprefix("model."): value for key, value in _read(path).items() if not key.endswith("resample_filter")}
    try:
        config = _config(weights)
        net = network_class("UNet2DModel").from_config(config)
        net.load_state_dict(dict(_renamed(weights, net.state_dict())))
    except (KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} does not hold the weights of an ADM network of EDM ({reason}); DDPM++ and EDM2 have no diffusers network"
        ) from None
    classes = config["num_class_embeds"]
    inputs = (LabelInput(classes=classes - 1, null=null_class),) if classes else ()
    return Denoiser(net.eval(), parametrisation=Edm(sigma_data=sigma_data, time_scale=0.25)), inputs


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        with path.open("rb") as file:
            is_pickle = file.read(2).startswith((b"PK", b"\x80"))  # in an archive, or by itself
        if not is_pickle:
            raise ValueError(f"{path} is no file of weights; give .safetensors, or a directory that diffusers saved") from None
        raise ValueError(
            f"{path} is a pickle of more than tensors, which reading would execute; save the network's state_dict() "
            "with safetensors where its code is trusted"
        ) from None
    except Exception as error:  # of whatever kind torch and safetensors raise for bytes they do not expect
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise ValueError(f"{path} could not be read ({reason}); give .safetensors") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} is not a state dict, that is names and tensors; save the network's state_dict()")
    return {str(key): value.float() for key, value in found.items()}


def _levels(weights: dict[str, Tensor]) -> list[int]:
    """Sides of the images at every level, largest first."""
    return sorted({int(found[2]) for key in weights if (found := LEVEL.fullmatch(key))}, reverse=True)


def _config(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Of the diffusers network."""
    sides = _levels(weights)
    channels = [len(weights[f"enc.{side}x{side}_block0.conv0.weight"]) for side in sides]
    attention = [f"enc.{side}x{side}_block0.qkv.weight" in weights for side in sides]
    groups = {min(GROUPS, width // LEAST) for width in channels}
    if len(groups) != 1 or weights["map_layer0.weight"].shape[1] != channels[0]:
        raise KeyError(f"levels of {channels} channels")
    blocks = sum(re.fullmatch(rf"enc\.{sides[0]}x{sides[0]}_block\d+\.conv0\.weight", key) is not None for key in weights)
    labels = weights.get("map_label.weight")
    return {
        "sample_size": sides[0],
        "in_channels": weights[f"enc.{sides[0]}x{sides[0]}_conv.weight"].shape[1],
        "out_channels": len(weights["out_conv.weight"]),
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": HEAD,
        "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),  # without it, the middle block's attention has no normalisation
        "time_embedding_dim": len(weights["map_layer0.weight"]),
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "num_class_embeds": None if labels is None else labels.shape[1] + 1,
    }


def _renamed(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and values of diffusers. Raises KeyError for a weight that has no place."""
    sides = _levels(weights)
    last = len(sides) - 1
    for key, value in weights.items():
        name, _, kind = key.rpartition(".")
        if key.startswith("map_augment"):
            continue  # sampling has no augmentation
        if name == "map_label":
            yield "class_embedding.weight", torch.cat([value.T, torch.zeros(1, len(value))])  # the last one means "none"
        elif name in ENDS:
            yield f"{ENDS[name]}.{kind}", value
        elif found := LEVEL.fullmatch(key):
            half, level, block, rest = found[1], sides.index(int(found[2])), found[3], found[4]
            if block == "conv":
                yield f"conv_in.{kind}", value
            else:
                yield from _of_block(*_place(half, level, last, block), rest, value, wanted)
        else:
            raise KeyError(key)


def _place(half: str, level: int, last: int, block: str) -> tuple[str, str]:
    """Where diffusers has a block, and the attention that follows it."""
    if half == "dec" and block.startswith("in"):
        return f"mid_block.resnets.{block[2:]}", "mid_block.attentions.0"
    if block == "down":  # EDM begins a level with it, diffusers ends the one before
        return f"down_blocks.{level - 1}.downsamplers.0", ""
    if block == "up":
        return f"up_blocks.{last - level - 1}.upsamplers.0", ""
    index = block.removeprefix("block")
    where = f"down_blocks.{level}" if half == "enc" else f"up_blocks.{last - level}"
    return f"{where}.resnets.{index}", f"{where}.attentions.{index}"


def _of_block(resnet: str, attention: str, rest: str, value: Tensor, wanted: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A weight of a residual block or of its attention, whose queries, keys and values are interleaved in EDM."""
    part, kind = rest.split(".")
    if part in BLOCK:
        yield f"{resnet}.{BLOCK[part]}.{kind}", value
    elif part == "norm2":
        yield f"{attention}.group_norm.{kind}", value
    elif part == "proj":
        yield f"{attention}.to_out.0.{kind}", value.reshape(wanted[f"{attention}.to_out.0.{kind}"].shape)
    elif part == "qkv":
        for i, name in enumerate(("to_q", "to_k", "to_v")):
            mine = value.reshape(-1, 3, *value.shape[1:])[:, i]
            yield f"{attention}.{name}.{kind}", mine.reshape(wanted[f"{attention}.{name}.{kind}"].shape)
    else:
        raise KeyError(f"{resnet}: {rest}")

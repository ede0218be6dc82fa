"""A Stable Diffusion checkpoint in one file, under the names that its authors gave the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

__all__ = ["save_single"]

# diffusers' names and the authors', of a U-Net of two levels with two layers each.
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "mid_block.attentions.0": "middle_block.1",
    **{f"mid_block.resnets.{j}": f"middle_block.{2 * j}" for j in (0, 1)},
    **{f"down_blocks.{i}.resnets.{j}": f"input_blocks.{3 * i + j + 1}.0" for i in (0, 1) for j in (0, 1)},
    **{f"down_blocks.0.attentions.{j}": f"input_blocks.{j + 1}.1" for j in (0, 1)},
    **{f"up_blocks.{i}.resnets.{j}": f"output_blocks.{3 * i + j}.0" for i in (0, 1) for j in (0, 1, 2)},
    **{f"up_blocks.1.attentions.{j}": f"output_blocks.{3 + j}.1" for j in (0, 1, 2)},
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    **{f"mid_block.attentions.0.to_{n}": f"mid.attn_1.{n}" for n in "qkv"},
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    **{f"mid_block.resnets.{j}": f"mid.block_{j + 1}" for j in (0, 1)},
    "down_blocks.0.downsamplers.0": "down.0.downsample",
    "up_blocks.0.upsamplers.0": "up.1.upsample",
    **{f"down_blocks.{i}.resnets.{j}": f"down.{i}.block.{j}" for i in (0, 1) for j in (0, 1)},
    **{f"up_blocks.{i}.resnets.{j}": f"up.{1 - i}.block.{j}" for i in (0, 1) for j in (0, 1, 2)},
    "conv_shortcut": "nin_shortcut",
}


def save_single(path: Path, unet: Any, vae: Any) -> Path:
    """Both in one safetensors file."""
    tensors = {f"model.diffusion_model.{_unets(name)}": tensor for name, tensor in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        linear = ".attentions." in name and name.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{_vaes(name)}"] = tensor[..., None, None] if linear else tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def _unets(name: str) -> str:
    part, theirs = next((ours, theirs) for ours, theirs in UNET.items() if name.startswith(f"{ours}."))
    rest = name.removeprefix(f"{part}.")
    inner = rest.split(".")[0]
    return f"{theirs}.{rest.replace(inner, RESNET[inner]) if '.resnets.' in name else rest}"


def _vaes(name: str) -> str:
    for ours, theirs in VAE.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return name

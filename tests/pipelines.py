"""Tiny pipelines of diffusers with random weights, as they are published: classes, schedulers, layouts on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from small import small

__all__ = ["CASES", "STABLE", "Tiny", "network", "save", "vae"]

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {"steps_offset": 1, "timestep_spacing": "leading", **STABLE}


class Tiny(NamedTuple):
    """A pipeline's class, its network, its scheduler, whether it has an autoencoder."""

    pipeline: str
    network: str
    scheduler: Any
    latent: bool = True


CASES: dict[str, Callable[[], Tiny]] = {
    "sd-pndm": lambda: Tiny(
        "StableDiffusionPipeline",
        "text",
        diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **STABLE),
    ),
    "sd-ddim": lambda: Tiny(
        "StableDiffusionPipeline", "text", diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LEADING)
    ),
    "sd-old-ddim": lambda: Tiny("StableDiffusionPipeline", "text", diffusers.DDIMScheduler(**STABLE)),
    "sd-v-zero-snr": lambda: Tiny(
        "StableDiffusionPipeline",
        "text",
        diffusers.DDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            **STABLE,
        ),
    ),
    "sd-euler-trailing": lambda: Tiny(
        "StableDiffusionPipeline", "text", diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **STABLE)
    ),
    "sd-dpm-karras": lambda: Tiny(
        "StableDiffusionPipeline", "text", diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **STABLE)
    ),
    "sdxl-euler": lambda: Tiny("StableDiffusionXLPipeline", "sdxl", diffusers.EulerDiscreteScheduler(**LEADING)),
    "sdxl-turbo": lambda: Tiny(
        "StableDiffusionXLPipeline", "sdxl", diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **STABLE)
    ),
    "sd3-static": lambda: Tiny("StableDiffusion3Pipeline", "sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "sd3-dynamic": lambda: Tiny(
        "StableDiffusion3Pipeline",
        "sd3",
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    ),
    "ddpm": lambda: Tiny("DDPMPipeline", "plain", diffusers.DDPMScheduler(), latent=False),
    "ddim-of-ddpm": lambda: Tiny("DDIMPipeline", "plain", diffusers.DDPMScheduler(), latent=False),
    "ddpm-cosine": lambda: Tiny(
        "DDPMPipeline", "plain", diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False), latent=False
    ),
    "lcm": lambda: Tiny(
        "LatentConsistencyModelPipeline",
        "lcm",
        diffusers.LCMScheduler(**STABLE),
    ),
    "dit": lambda: Tiny("DiTPipeline", "dit", diffusers.DDIMScheduler(clip_sample=False)),
}


def network(name: str) -> Any:
    """A random network: one of `small`, or "lcm", which embeds its guidance scale; "dit" knows a thousand classes."""
    if name == "dit":
        torch.manual_seed(0)
        net = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
        )
    elif name == "lcm":
        torch.manual_seed(0)
        config = {k: v for k, v in small("text").denoiser.net.config.items() if not k.startswith("_")}
        net = UNet2DConditionModel(**config | {"time_cond_proj_dim": 32})
    else:
        net = small(name).denoiser.net
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def vae() -> AutoencoderKL:
    """A random autoencoder of 4 channels, two pixels to one."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )


def save(path: Path, tiny: Tiny) -> Path:
    """A pipeline directory as save_pretrained lays it out, without text encoders."""
    net = network(tiny.network)
    part = "transformer" if "Transformer" in type(net).__name__ else "unet"
    parts = {part: net, "scheduler": tiny.scheduler} | ({"vae": vae()} if tiny.latent else {})
    index: dict[str, Any] = {"_class_name": tiny.pipeline, "_diffusers_version": diffusers.__version__}
    for name, module in parts.items():
        module.save_pretrained(path / name)
        index[name] = ["diffusers", type(module).__name__]
    (path / "model_index.json").write_text(json.dumps(index))
    return path

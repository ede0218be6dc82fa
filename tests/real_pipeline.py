"""diffusers' own pipelines from noise that a test gives; by hand, as their source has it, where they need transformers."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipelines import Tiny, network, vae
from torch import Tensor

__all__ = ["last_state"]

SDXL_IDS = torch.tensor([[16.0, 16, 0, 0, 16, 16]])  # of images of 16x16
LCM_SCALE, LCM_WIDTH = 8.5, 32


class Noise:
    """Stands where a pipeline or a scheduler has randn_tensor; gives (draws, C, H, W) one after the other."""

    def __init__(self, drawn: Tensor) -> None:
        self.drawn, self.count = drawn, 0

    def __call__(self, shape: Any, *_: Any, **__: Any) -> Tensor:
        self.count += 1
        return self.drawn[None, self.count - 1].expand(tuple(shape))


def last_state(
    tiny: Tiny, steps: int, scale: float, drawn: Tensor, condition: tuple[Tensor, ...], null: tuple[Tensor, ...]
) -> Tensor:
    """What the pipeline of a case ends in, (1, C, H, W), before it is decoded; drawn (draws, C, H, W)."""
    net = network(tiny.network)
    pipeline = _pipeline(tiny, net)
    noise = Noise(drawn)
    scheduler = pipeline.scheduler if pipeline else tiny.scheduler
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for place in {type(scheduler).__module__} | ({type(pipeline).__module__} if pipeline else set()):
            patch.setattr(sys.modules[place], "randn_tensor", noise, raising=False)
        if pipeline is None:
            return _by_hand(tiny, net, steps, scale, noise, condition, null)
        ends: list[Any] = []
        step = scheduler.step
        patch.setattr(
            scheduler, "step", lambda *given, eta=0.0, **more: ends.append(step(*given, **_without(more))) or ends[-1]
        )
        pipeline(num_inference_steps=steps, **_asked(tiny, scale, condition, null))
    return (ends[-1][0] if isinstance(ends[-1], tuple) else ends[-1].prev_sample)[:1]


def _without(more: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in more.items() if key not in ("generator", "use_clipped_model_output")}


def _pipeline(tiny: Tiny, net: Any) -> Any:
    made = getattr(diffusers, tiny.pipeline)
    parts = {"unet": net, "transformer": net, "vae": vae() if tiny.latent else None, "scheduler": tiny.scheduler}
    takes = set(inspect.signature(made.__init__).parameters) - {"self", "id2label", "force_zeros_for_empty_prompt"}
    try:
        pipeline = made(**{key: parts.get(key) for key in takes})
    except ImportError:
        return None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _asked(tiny: Tiny, scale: float, condition: tuple[Tensor, ...], null: tuple[Tensor, ...]) -> dict[str, Any]:
    if tiny.network == "plain":
        return {"output_type": "np"}
    if tiny.network == "dit":
        return {"class_labels": condition[0].tolist(), "guidance_scale": scale, "output_type": "np"}
    names = ("prompt_embeds", "pooled_prompt_embeds")
    asked: dict[str, Any] = dict(zip(names, condition, strict=False)) | {"output_type": "latent", "guidance_scale": scale}
    if tiny.network == "lcm":
        return asked | {"guidance_scale": LCM_SCALE}
    return asked | {f"negative_{name}": value for name, value in zip(names, null, strict=False)}


def _by_hand(
    tiny: Tiny, net: Any, steps: int, scale: float, noise: Noise, condition: tuple[Tensor, ...], null: tuple[Tensor, ...]
) -> Tensor:
    """As the pipelines of SD, SDXL, SD3 and LCM have it."""
    scheduler, more = tiny.scheduler, {}
    if tiny.pipeline == "StableDiffusionPipeline":  # which corrects what its first checkpoints lack
        keys = {"steps_offset": 1, "clip_sample": False}
        config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        scheduler = type(scheduler)(**config | {key: value for key, value in keys.items() if key in config})
    if scheduler.config.get("use_dynamic_shifting"):
        more = {"mu": 0.5 + (16 - 256) * (1.16 - 0.5) / (4096 - 256)}  # 16 tokens
    scheduler.set_timesteps(steps, **more)
    x = noise((1, 4, 8, 8)) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = _call(tiny, net, seen, t, condition)
        if scale != 1 and tiny.network != "lcm":
            without = _call(tiny, net, seen, t, null)
            out = without + scale * (out - without)
        x = scheduler.step(out, t, x).prev_sample
    return x


def _call(tiny: Tiny, net: Any, x: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    if tiny.network == "sd3":
        return net(x, condition[0], condition[1], t.expand(1)).sample
    if tiny.network == "sdxl":
        return net(x, t, condition[0], added_cond_kwargs={"text_embeds": condition[1], "time_ids": SDXL_IDS}).sample
    if tiny.network == "lcm":
        half = LCM_WIDTH // 2
        angles = 1000 * (LCM_SCALE - 1) * torch.exp(torch.arange(half) * -(np.log(10000.0) / (half - 1)))
        return net(x, t, condition[0], timestep_cond=torch.cat([angles.sin(), angles.cos()])[None]).sample
    return net(x, t, condition[0]).sample

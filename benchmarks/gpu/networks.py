"""Networks of real size with random weights, made in seconds: their speed does not depend on what they have learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from scaling import SDXL
from torch import Tensor, nn

from fewstep.artifact.components import Constant
from fewstep.artifact.signature import ArrayInput, ImageOutput, Input, Signature
from fewstep.models.denoiser import Denoiser
from fewstep.models.schedulers import make_scheduler, scheduler_plan
from fewstep.sampling.parametrisation import Betas, Eps
from fewstep.sampling.plan import Plan

__all__ = ["LARGE", "Large", "scheduler"]

STABLE = Betas(kind="scaled_linear", start=0.00085, end=0.012)
CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": STABLE.start,
    "beta_end": STABLE.end,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # the rest is diffusers' default
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
TABLE = (1 << 20) + 7  # random numbers that all weights are cut from


@dataclass(frozen=True)
class Large:
    """A network's configuration, what it makes and from what, and the steps of its plan."""

    config: dict[str, Any]
    signature: Signature
    steps: int = 4
    constants: dict[str, Constant] = field(default_factory=dict)

    def denoiser(self, device: str, dtype: torch.dtype) -> Denoiser:
        """The network with weights that are the same on every device, in eval mode."""
        with torch.device("meta"):
            net = nn.Module.to(UNet2DConditionModel(**self.config), dtype)  # diffusers' own warns where nothing is wrong
        net = net.to_empty(device=device)
        fill(net)
        return Denoiser(net, parametrisation=Eps(betas=STABLE), constants=self.constants).to(device).eval()

    def plan(self) -> Plan:
        """DDIM, as diffusers' scheduler walks it."""
        return scheduler_plan(scheduler(), Eps(betas=STABLE), self.steps)


def _of(side: int, tokens: int, width: int, pooled: int | None = None) -> Signature:
    """Latents of 4 channels from the embeddings of a prompt."""
    inputs: list[Input] = [ArrayInput(name="prompt_embeds", shape=(tokens, width), null="given")]
    inputs += [ArrayInput(name="pooled_prompt_embeds", shape=(pooled,), null="given")] if pooled else []
    return Signature(inputs=tuple(inputs), output=ImageOutput(channels=4, height=side, width=side))


LARGE = {
    "sd15": Large(SD15, _of(64, 77, 768)),
    "sdxl_size": Large(SDXL, _of(128, 77, 2048, 1280), 1, {"time_ids": [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]}),
    "tiny": Large(TINY, _of(8, 5, 12), 2),
}


def scheduler() -> Any:
    """diffusers' own, for the loop that a pipeline has."""
    return make_scheduler(CONFIG)


@torch.no_grad()
def fill(net: nn.Module) -> None:
    """Weights by fan-in, from one table of random numbers; biases 0, norms 1."""
    table = torch.randn(TABLE, generator=torch.Generator().manual_seed(0))
    assert not list(net.buffers()), "a buffer would be left empty"
    device = next(net.parameters()).device
    table = table.to(device)
    begin = 0
    for parameter in net.parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0)
            continue
        count = parameter.numel()
        parameter.copy_(_cut(table, begin, count).reshape(parameter.shape) * prod(parameter.shape[1:]) ** -0.5)
        begin = (begin + count) % TABLE
    for module in net.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            module.weight.fill_(1.0)


def _cut(table: Tensor, begin: int, count: int) -> Tensor:
    """count numbers of the table from begin on, around its end."""
    repeats = -(-(begin + count) // TABLE)
    return table.repeat(repeats)[begin : begin + count]

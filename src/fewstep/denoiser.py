"""D(x, sigma, condition): the seam everything talks to, around a diffusers network. Needs torch and diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from fewstep.bundle import Bundle, Draft
from fewstep.manifest import Condition, ImageSpec, NetworkEntry
from fewstep.tensors import os_errors

__all__ = ["Denoiser", "Scales", "edm", "load_network", "save_network", "unet"]


class Scales(NamedTuple):
    """D = skip x + out F(into x, timestep)."""

    skip: Any
    out: Any
    into: Any
    timestep: Any


def edm(sigma: Tensor | float, sigma_data: float) -> Scales:
    """EDM preconditioning, for one float or a tensor of noise levels. Karras et al. 2022, table 1.

    The timestep 250 ln sigma (EDM's ln(sigma) / 4 in thousandths) is what diffusers' EDM-style UNet2DModel checkpoints take.
    """
    variance = sigma**2 + sigma_data**2
    log = sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)
    return Scales(sigma_data**2 / variance, sigma * sigma_data / variance**0.5, variance**-0.5, 250 * log)


class Denoiser(nn.Module):
    """D(x, sigma, label) around a network F.

    patch > 1 folds patch x patch pixels into channels before F and back after it, so that F works on a smaller image.
    Arithmetic in sigma stays in the dtype of x; only F runs in the dtype of its weights.
    """

    def __init__(self, net: nn.Module, *, sigma_data: float, patch: int = 1) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.patch = patch

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """Denoised estimate (B, C, H, W) of x at noise level sigma, one float for all or (B,); label (B,) int64."""
        scales = edm(sigma, self.sigma_data)
        timestep = torch.as_tensor(scales.timestep, dtype=torch.float32, device=x.device)
        skip, out, into = (s.reshape(-1, 1, 1, 1) if isinstance(s, Tensor) else s for s in scales[:3])
        return skip * x + out * self.evaluate(into * x, timestep, label)

    def evaluate(self, x: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """F(x, timestep, label) alone, (B, C, H, W) in the dtype of x; timestep () or (B,) float32."""
        folded = functional.pixel_unshuffle(x, self.patch)  # (B, C, H, W) -> (B, C p p, H/p, W/p)
        out = self.net(folded.to(self.dtype), timestep, class_labels=label, return_dict=False)[0]
        return functional.pixel_shuffle(out.to(x.dtype), self.patch)

    @property
    def architecture(self) -> str:
        """Class and configuration of the network: networks for which it is equal differ in weights only."""
        net: Any = self.net
        return f"{net.to_json_string()} patch {self.patch}"

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.net.parameters()).dtype


def unet(
    image: ImageSpec,
    condition: Condition,
    *,
    channels: tuple[int, ...],
    layers: int,
    attention: bool,
    patch: int,
    sigma_data: float,
) -> Denoiser:
    """A fresh UNet2DModel denoiser, attention in its middle or nowhere; one class embedding more than classes, for "none".

    Raises ValueError when the image does not divide into patches and levels.
    """
    divisor = patch * 2 ** (len(channels) - 1)
    if image.height % divisor or image.width % divisor:
        raise ValueError(
            f"{image.height}x{image.width} images do not divide by {divisor} (patch {patch}, {len(channels)} levels); "
            "resize them or choose fewer levels"
        )
    net = UNet2DModel(
        sample_size=(image.height // patch, image.width // patch),
        in_channels=image.channels * patch**2,
        out_channels=image.channels * patch**2,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=8,
        add_attention=attention,
        attention_head_dim=min(32, channels[-1]),
        num_class_embeds=condition.classes + 1 if condition.kind == "labels" else None,
    )
    return Denoiser(net, sigma_data=sigma_data, patch=patch)


def save_network(draft: Draft, name: str, denoiser: Denoiser) -> None:
    """Write a denoiser's network into a bundle draft, in diffusers layout."""
    directory = f"networks/{name}"
    draft.remove(directory)
    net: Any = denoiser.net
    with os_errors():
        net.save_pretrained(draft.new(f"{directory}/config.json").parent)
    draft.manifest.networks[name] = NetworkEntry(directory=directory, sigma_data=denoiser.sigma_data, patch=denoiser.patch)


def load_network(bundle: Bundle, name: str) -> Denoiser:
    """A bundle's network as a denoiser, fp32, in eval mode. Raises ValueError for a network class fewstep does not know."""
    directory = bundle.network(name)
    entry = bundle.manifest.networks[name]
    kind = json.loads(Path(directory, "config.json").read_text("utf-8")).get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"network {name!r} is a {kind}; this version of fewstep drives UNet2DModel")
    net = UNet2DModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    net.register_to_config(_name_or_path="")  # else the path of this machine goes along wherever the network is saved
    return Denoiser(net, sigma_data=entry.sigma_data, patch=entry.patch).eval()

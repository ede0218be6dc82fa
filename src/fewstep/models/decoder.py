"""From latents to images: the decoder half of an autoencoder. Needs torch and diffusers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import ImageSpec, LatentSpec
from fewstep.models.configured import class_of, quiet
from fewstep.models.tensors import os_errors
from fewstep.system.readable import readable

__all__ = [
    "Decoder",
    "check_decoder_class",
    "latent_spec",
    "load_autoencoder",
    "load_decoder",
    "pixels_per_latent",
    "save_decoder",
    "to_bytes",
]

DIRECTORY = "decoder"
CLASSES = get_args(LatentSpec.model_fields["decoder"].annotation)


class Decoder(nn.Module):
    """image (B, 3, H, W) in [-1, 1] = decode(latent / scaling_factor + shift_factor), latent (B, C, h, w).

    Holds the decoder half alone. Images are not clipped; a network's decoder leaves the range by a little.
    """

    def __init__(self, autoencoder: Any, latent: LatentSpec) -> None:
        super().__init__()
        self.decoder: nn.Module = autoencoder.decoder
        # A 1x1 convolution that AutoencoderKL may have before its decoder.
        self.post_quant_conv: nn.Module = getattr(autoencoder, "post_quant_conv", None) or nn.Identity()
        self.scaling_factor, self.shift_factor = latent.scaling_factor, latent.shift_factor

    def forward(self, latent: Tensor) -> Tensor:
        """In the dtype of the latent, whatever the dtype of the weights."""
        scaled = latent / self.scaling_factor + self.shift_factor
        image: Tensor = self.decoder(self.post_quant_conv(scaled.to(self.dtype)))
        return image.to(latent.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return next(self.decoder.parameters()).dtype


def to_bytes(states: Tensor, image: ImageSpec, decoder: Decoder | None = None) -> Tensor:
    """Last states, decoded where there is a decoder, as images (B, C, H, W) in 0 .. 255; not rounded, so gradients pass."""
    images = states if decoder is None else decoder(states)
    return ((images - image.low) * (255 / (image.high - image.low))).clamp(0, 255)


def save_decoder(draft: Draft, autoencoder: Any) -> None:
    """Make the draft a latent model's: write the autoencoder in diffusers layout and say in the manifest what its latents are.

    Raises ValueError for a class that is not AutoencoderKL or AutoencoderTiny, or one that does not make the draft's images.
    """
    latent = latent_spec(autoencoder, draft.manifest.image)
    draft.remove(DIRECTORY)
    autoencoder.register_to_config(_name_or_path="")  # else the path it was loaded from goes along
    with os_errors():
        autoencoder.save_pretrained(draft.new(f"{DIRECTORY}/config.json").parent)
    draft.manifest.latent = latent.model_copy(update={"directory": DIRECTORY})


def latent_spec(autoencoder: Any, image: ImageSpec) -> LatentSpec:
    """What an autoencoder makes of images. Raises ValueError as `save_decoder` does."""
    kind, config = type(autoencoder).__name__, autoencoder.config
    check_decoder_class(kind)
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise ValueError(f"this {kind} normalises latents by channel (latents_mean, latents_std), which fewstep does not do")
    factor = pixels_per_latent(autoencoder)
    if image.height % factor or image.width % factor:
        raise ValueError(
            f"this {kind} needs image sides that divide by {factor}, got {image.height}x{image.width}; resize them"
        )
    latent = LatentSpec(
        channels=config.latent_channels,
        height=image.height // factor,
        width=image.width // factor,
        scaling_factor=config.scaling_factor,
        shift_factor=config.get("shift_factor") or 0.0,
        decoder=kind,  # type: ignore[arg-type]  # checked above
        directory=None,
    )
    _check_fit(autoencoder, latent, image)
    return latent


def load_decoder(bundle: Bundle) -> Decoder:
    """The decoder of a latent model's bundle, fp32, in eval mode.

    Raises ValueError for a bundle of pixels, one without its decoder, or a decoder that is not what the manifest says.
    """
    latent = bundle.manifest.latent
    if latent is None:
        raise ValueError(f"{bundle.root.name} works on pixels and has no decoder")
    if latent.directory is None:
        raise ValueError(f"{bundle.root.name} was shipped without its decoder; only its graphs can be used")
    directory = bundle.directory(latent.directory)
    autoencoder = load_autoencoder(directory, class_of(directory))
    _check_fit(autoencoder, latent, bundle.manifest.image)
    return Decoder(autoencoder, latent).eval()


def load_autoencoder(directory: Path, kind: str) -> Any:
    """An autoencoder that diffusers saved, in fp32. Raises ValueError for a class fewstep does not drive."""
    check_decoder_class(kind)
    made = getattr(importlib.import_module("diffusers"), kind)
    with readable(f"the {kind} in {directory}", "copy it again from its source"), quiet():
        return made.from_pretrained(directory, local_files_only=True, use_safetensors=True)


def check_decoder_class(kind: str) -> None:
    """Raises ValueError for an autoencoder that fewstep does not drive."""
    if kind not in CLASSES:
        raise ValueError(f"the decoder is a {kind}; this version of fewstep drives {', '.join(CLASSES)}")


def _check_fit(autoencoder: Any, latent: LatentSpec, image: ImageSpec) -> None:
    config, factor = autoencoder.config, pixels_per_latent(autoencoder)
    made = (config.out_channels, latent.height * factor, latent.width * factor)
    if config.latent_channels != latent.channels or made != image.shape or type(autoencoder).__name__ != latent.decoder:
        raise ValueError(
            f"this {type(autoencoder).__name__} makes {made} (C, H, W) images from {config.latent_channels} channels, the "
            f"bundle needs {image.shape} from {latent.channels} by {latent.decoder}; choose an autoencoder made for it"
        )


def pixels_per_latent(autoencoder: Any) -> int:
    """Pixels per latent pixel: every level but the last doubles the side."""
    config = autoencoder.config
    levels = config.get("decoder_block_out_channels") or config.block_out_channels
    factor: int = config.get("upsampling_scaling_factor", 2) ** (len(levels) - 1)
    return factor

"""From latents to images: the decoder half of an autoencoder. Needs torch and diffusers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DecoderEntry
from fewstep.artifact.signature import ImageOutput, Output, State
from fewstep.models.configured import class_of, quiet
from fewstep.models.tensors import os_errors
from fewstep.system.readable import readable

__all__ = [
    "Decoder",
    "as_output",
    "check_decoder_class",
    "decoded",
    "in_units",
    "load_autoencoder",
    "load_decoder",
    "pixels_per_latent",
    "save_decoder",
]

NAME = "decoder"
CLASSES = ("AutoencoderKL", "AutoencoderTiny")


class Decoder(nn.Module):
    """image (B, 3, H, W) in [-1, 1] = decode(latent / scaling_factor + shift_factor), latent (B, C, h, w).

    Holds the decoder half alone. Images are not clipped; a network's decoder leaves the range by a little.
    """

    def __init__(self, autoencoder: Any, entry: DecoderEntry) -> None:
        super().__init__()
        self.decoder: nn.Module = autoencoder.decoder
        # A 1x1 convolution that AutoencoderKL may have before its decoder.
        self.post_quant_conv: nn.Module = getattr(autoencoder, "post_quant_conv", None) or nn.Identity()
        self.scaling_factor, self.shift_factor = entry.scaling_factor, entry.shift_factor

    def forward(self, latent: Tensor) -> Tensor:
        """In the dtype of the latent, whatever the dtype of the weights."""
        scaled = latent / self.scaling_factor + self.shift_factor
        image: Tensor = self.decoder(self.post_quant_conv(scaled.to(self.dtype)))
        return image.to(latent.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return next(self.decoder.parameters()).dtype


def in_units(states: Tensor, output: Output, decoder: Decoder | None = None) -> Tensor:
    """Last states, decoded where there is a decoder, as outputs with channels first (B, C, ...); gradients pass.

    Images are in 0 .. 255, not rounded; arrays in the units of their columns.

    Args:
        states: (B, C, ...), of a plan's end.
        output: of the bundle's signature, which says range, mean and deviation.
        decoder: of a latent model; None where states are samples already.

    Returns:
        (B, channels or columns, ...); where the output has an upper bound, values are clamped to it and to 0.
    """
    made = states if decoder is None else decoder(states)
    *numbers, top = output.scaling
    ones = (1,) * (made.ndim - 2)
    low, factor, shift = (made.new_tensor(number).reshape(-1, *ones) for number in numbers)
    values = (made - low) * factor + shift
    return values if top is None else values.clamp(0, top)


def as_output(states: Tensor, output: Output, decoder: Decoder | None = None) -> npt.NDArray[Any]:
    """Last states as what a bundle gives: images uint8 (B, H, W, C), or values float32 (B, *axes, columns).

    Args:
        states, output, decoder: as for `in_units`.
    """
    made = in_units(states, output, decoder).detach().cpu().numpy()
    whole = output.tensor.dtype == "uint8"
    return np.moveaxis(made.round() if whole else made, 1, -1).astype(output.tensor.dtype)


def save_decoder(draft: Draft, autoencoder: Any) -> None:
    """Write the autoencoder of a latent model in diffusers layout, as the draft's decoder.

    Args:
        draft: gets components/decoder, its entry, and the state that the decoder works on.
        autoencoder: of diffusers, with its weights.

    Raises:
        ValueError: for a class that is not AutoencoderKL or AutoencoderTiny, or one that does not make the draft's images.
        OSError: where it cannot be written.
    """
    entry, state = decoded(autoencoder, draft.manifest.output)
    directory = f"components/{NAME}"
    draft.remove(directory)
    autoencoder.register_to_config(_name_or_path="")  # else the path it was loaded from goes along
    with os_errors():
        autoencoder.save_pretrained(draft.new(f"{directory}/config.json").parent)
    draft.manifest.components[NAME] = entry.model_copy(update={"directory": directory})
    draft.manifest.state = state


def decoded(autoencoder: Any, image: Output) -> tuple[DecoderEntry, State]:
    """What an autoencoder's decoder is in a bundle, and the state that it makes images of.

    Args:
        autoencoder: of diffusers.
        image: of the bundle's signature; its sides divide by the pixels of a latent.

    Returns:
        An entry without a directory, and the state, (C, h, w).

    Raises:
        ValueError: for another class, arrays in place of images, latents that are normalised by channel, or images that it does
            not make.
    """
    kind, config = type(autoencoder).__name__, autoencoder.config
    check_decoder_class(kind)
    if not isinstance(image, ImageOutput):
        raise ValueError(f"a {kind} makes images, this bundle gives arrays; leave the autoencoder out")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise ValueError(f"this {kind} normalises latents by channel (latents_mean, latents_std), which fewstep does not do")
    factor = pixels_per_latent(autoencoder)
    if image.height % factor or image.width % factor:
        raise ValueError(
            f"this {kind} needs image sides that divide by {factor}, got {image.height}x{image.width}; resize them"
        )
    state = State(channels=config.latent_channels, axes=(image.height // factor, image.width // factor))
    numbers = {"scaling_factor": config.scaling_factor, "shift_factor": config.get("shift_factor") or 0.0}
    _check_fit(autoencoder, kind, state, image)
    return DecoderEntry(kind=kind, directory=None, **numbers), state


def load_decoder(bundle: Bundle) -> Decoder:
    """The decoder of a latent model's bundle, fp32, in eval mode.

    Raises ValueError for a bundle without one, or a decoder that is not what the manifest says.
    """
    manifest = bundle.manifest
    if manifest.decoder is None:
        raise ValueError(f"{bundle.root.name} has no decoder: its samplers walk on what it gives")
    directory = bundle.component(NAME)
    autoencoder = load_autoencoder(directory, class_of(directory))
    _check_fit(autoencoder, manifest.decoder.kind, manifest.state, manifest.output)
    return Decoder(autoencoder, manifest.decoder).eval()


def load_autoencoder(directory: Path, kind: str) -> Any:
    """An autoencoder that diffusers saved, in fp32.

    Args:
        directory: with config.json and .safetensors.
        kind: its class, AutoencoderKL or AutoencoderTiny.

    Raises:
        ValueError: for a class fewstep does not drive, or files that cannot be read.
    """
    check_decoder_class(kind)
    made = getattr(importlib.import_module("diffusers"), kind)
    with readable(f"the {kind} in {directory}", "copy it again from its source"), quiet():
        return made.from_pretrained(directory, local_files_only=True, use_safetensors=True)


def check_decoder_class(kind: str) -> None:
    """Raises ValueError for an autoencoder that fewstep does not drive."""
    if kind not in CLASSES:
        raise ValueError(f"the decoder is a {kind}; this version of fewstep drives {', '.join(CLASSES)}")


def _check_fit(autoencoder: Any, kind: str, state: State, image: Output) -> None:
    config, factor = autoencoder.config, pixels_per_latent(autoencoder)
    made = (config.out_channels, *(side * factor for side in state.axes))
    if config.latent_channels != state.channels or made != image.shape or type(autoencoder).__name__ != kind:
        raise ValueError(
            f"this {type(autoencoder).__name__} makes {made} (C, H, W) images from {config.latent_channels} channels, the "
            f"bundle needs {image.shape} from {state.channels} by {kind}; choose an autoencoder made for it"
        )


def pixels_per_latent(autoencoder: Any) -> int:
    """Pixels per latent pixel: every level but the last doubles the side."""
    config = autoencoder.config
    levels = config.get("decoder_block_out_channels") or config.block_out_channels
    factor: int = config.get("upsampling_scaling_factor", 2) ** (len(levels) - 1)
    return factor

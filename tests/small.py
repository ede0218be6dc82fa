"""Small random networks of every class, with the output and inputs of a bundle that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from fewstep.artifact.signature import (
    ArrayInput,
    ArrayOutput,
    Axis,
    Column,
    ImageOutput,
    Input,
    LabelInput,
    Signature,
)
from fewstep.models.denoiser import Denoiser, fresh_network
from fewstep.models.families.field_transformer import field_transformer
from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity

IMAGE = ImageOutput(channels=4, height=8, width=8)
STABLE = Betas(kind="scaled_linear", start=0.00085, end=0.012)
LABELS, TEXT = (LabelInput(classes=3),), (ArrayInput(name="prompt_embeds", shape=(5, 12), null="given"),)
POOLED = (*TEXT, ArrayInput(name="pooled_prompt_embeds", shape=(6,), null="given"))
# What a robot is told, and where it is to go; and something with as many axes as space has.
ROBOT = (LabelInput(name="task", classes=3), ArrayInput(name="observation", shape=(5,), null="zeros"))
PATH = ArrayOutput(
    axes=(Axis(name="time", size=8, unit="s"),),
    columns=(Column(name="x", unit="mm", mean=10.0, std=2.0), Column(name="y", unit="m", mean=-0.003, std=0.0005)),
)
VOLUME = ArrayOutput(
    axes=tuple(Axis(name=name, size=size) for name, size in (("depth", 2), ("row", 4), ("column", 6))),
    columns=(Column(name="density", mean=1.5, std=0.25),),
)
NAMES = ("unet", "plain", "dit", "text", "sdxl", "sd3")


class Small(NamedTuple):
    denoiser: Denoiser
    inputs: tuple[Input, ...]

    @property
    def signature(self) -> Signature:
        """With IMAGE as its output."""
        return Signature(inputs=self.inputs, output=IMAGE)


def small(name: str, seed: int = 0) -> Small:
    """One of NAMES, in eval mode; every parameter random, also those that start at 0 in training."""
    torch.manual_seed(seed)
    made = _make(name)
    for parameter in made.denoiser.parameters():
        if parameter.ndim == 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Small(made.denoiser.eval(), made.inputs)


def field(signature: Signature, seed: int = 0) -> Denoiser:
    """A small random network for arrays of any rank, in eval mode; every parameter random."""
    torch.manual_seed(seed)
    state = signature.output.state
    config = field_transformer(state, signature.inputs) | {"width": 16, "depth": 2, "heads": 2}
    denoiser = fresh_network(config, state, signature.inputs, parametrisation=Edm(sigma_data=0.5))
    for parameter in denoiser.parameters():
        if parameter.ndim == 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser.eval()


def given(inputs: Sequence[Input], batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random tensors for inputs, (B, ...) in their order."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, *each.tensor.shape, generator=generator)
        if each.values is None
        else torch.randint(each.values - 1, (batch,), generator=generator)
        for each in inputs
    )


def _make(name: str) -> Small:
    if name in ("unet", "plain"):
        net = UNet2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=4 if name == "unet" else None,
        )
        if name == "plain":
            return Small(Denoiser(net, parametrisation=Eps()), ())
        return Small(Denoiser(net, parametrisation=Edm(sigma_data=0.5)), LABELS)
    if name == "dit":
        net = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,  # the variance besides
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=3,
        )
        return Small(Denoiser(net, parametrisation=Eps()), LABELS)
    if name == "sd3":
        net = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            pos_embed_max_size=6,
        )
        return Small(Denoiser(net, parametrisation=Flow()), POOLED)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
    net = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        **(added if name == "sdxl" else {}),
    )
    if name == "text":
        return Small(Denoiser(net, parametrisation=Velocity(betas=STABLE)), TEXT)
    constants = {"time_ids": [64.0, 64.0, 0.0, 0.0, 64.0, 64.0]}
    return Small(Denoiser(net, parametrisation=Eps(betas=STABLE), constants=constants), POOLED)

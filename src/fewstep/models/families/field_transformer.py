"""A transformer of our own for states of any rank and inputs of any kind: sequences, images of many channels, volumes.

After DiT (Peebles and Xie 2023, arXiv 2212.09748): patches of the state are tokens, time and vectors modulate every block by
adaLN-Zero; inputs that are sequences themselves are tokens beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from fewstep.artifact.signature import Input, State
from fewstep.models.families.base import Constants, Facts, Family, Tensors, middle_of_blocks

__all__ = ["FAMILY", "FieldTransformer", "field_transformer"]

MAX_TOKENS = 1024  # attention takes their square; patches grow until a state has no more


class FieldTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(x, timestep, inputs) for states (B, C, *axes).

    Args:
        sample_size: the axes.
        in_channels: C.
        patch_size: side of the cubes that are a token, by axis.
        inputs: in the order of a signature (keys of a JSON file have none), the name of each and how many classes there are,
            "none" among them, or the shape of an array.
        width, depth, heads: of the transformer.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: Sequence[int],
        in_channels: int,
        patch_size: Sequence[int],
        inputs: Sequence[tuple[str, int | Sequence[int]]] = (),
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        if any(side % patch for side, patch in zip(sample_size, patch_size, strict=True)):
            raise ValueError(f"axes {tuple(sample_size)} do not divide into patches of {tuple(patch_size)}")
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.grid = tuple(side // patch for side, patch in zip(sample_size, patch_size, strict=True))
        numbers = in_channels * prod(patch_size)
        self.into, self.out = nn.Linear(numbers, width), nn.Linear(width, (out_channels or in_channels) * prod(patch_size))
        self.positions = nn.Parameter(0.02 * torch.randn(1, prod(self.grid), width))
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.told = nn.ModuleDict({name: _Told(about, width) for name, about in inputs})
        self.transformer_blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        for last in (self.out, self.modulation):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, timestep: Tensor, inputs: Tensors) -> Tensor:
        """F of states, (B, C, *axes).

        Args:
            x: (B, C, *axes).
            timestep: (1,) or (B,).
            inputs: by name with a batch: classes (B,) int64, arrays (B, ...).
        """
        vector = self.time_embedding(self.time_proj(timestep).to(x.dtype)).expand(x.shape[0], -1)
        tokens = [self.into(self._folded(x)) + self.positions]
        for name, told in self.told.items():
            made = told(inputs[name])
            if made.ndim == 2:
                vector = vector + made
            else:
                tokens.append(made)
        hidden, vector = torch.cat(tokens, 1), functional.silu(vector)
        for block in self.transformer_blocks:
            again = torch.is_grad_enabled() and self.gradient_checkpointing
            hidden = self._gradient_checkpointing_func(block, hidden, vector) if again else block(hidden, vector)
        shift, scale = self.modulation(vector)[:, None].chunk(2, -1)
        hidden = hidden[:, : prod(self.grid)]
        return self._unfolded(self.out(_normed(hidden) * (1 + scale) + shift), x.shape[0])

    def _folded(self, x: Tensor) -> Tensor:
        """(B, C, *axes) -> (B, tokens, C patch)"""
        rank = len(self.grid)
        sides = [number for pair in zip(self.grid, self.config.patch_size, strict=True) for number in pair]
        x = x.reshape(x.shape[0], x.shape[1], *sides)
        outer, inner = range(2, 2 * rank + 2, 2), range(3, 2 * rank + 2, 2)
        return x.permute(0, *outer, 1, *inner).reshape(x.shape[0], prod(self.grid), -1)

    def _unfolded(self, tokens: Tensor, batch: int) -> Tensor:
        rank, patch = len(self.grid), self.config.patch_size
        x = tokens.reshape(batch, *self.grid, -1, *patch)
        order = [n for i in range(rank) for n in (1 + i, 2 + rank + i)]
        return x.permute(0, 1 + rank, *order).reshape(batch, -1, *self.config.sample_size)


class _Told(nn.Module):
    """An input as a vector (B, width), or as tokens (B, n, width) where it is a sequence itself."""

    def __init__(self, about: int | Sequence[int], width: int) -> None:
        super().__init__()
        self.classes = isinstance(about, int)
        if isinstance(about, int):
            self.embedding: nn.Module = nn.Embedding(about, width)
            self.positions = None
        else:
            self.embedding = nn.Linear(about[-1] if about else 1, width)
            count = prod(about[:-1]) if len(about) > 1 else 0
            self.positions = nn.Parameter(0.02 * torch.randn(1, count, width)) if count else None

    def forward(self, values: Tensor) -> Tensor:
        if self.classes:
            made: Tensor = self.embedding(values)
            return made
        flat = values[:, None] if values.ndim == 1 else values
        if self.positions is None:
            return self.embedding(flat)  # type: ignore[no-any-return]
        return self.embedding(flat.flatten(1, -2)) + self.positions  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and two layers, both modulated by a vector; nothing at first (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(vector)[:, None].chunk(6, -1)
        hidden = hidden + gate * self._attended(_normed(hidden) * (1 + scale) + shift)
        moved = _normed(hidden) * (1 + scale2) + shift2
        return hidden + gate2 * self.down(functional.gelu(self.up(moved), approximate="tanh"))  # type: ignore[no-any-return]

    def _attended(self, hidden: Tensor) -> Tensor:
        batch, count, width = hidden.shape
        parts = self.to_qkv(hidden).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]


def _normed(hidden: Tensor) -> Tensor:
    return functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)


def field_transformer(state: State, inputs: Sequence[Input]) -> dict[str, Any]:
    """The configuration of one for a state and inputs, with patches so large that attention can be computed.

    Args:
        state: of any number of axes.
        inputs: of the signature, in its order.

    Returns:
        Keys of a JSON file, for `fresh_network`. Sides that do not halve may leave more than MAX_TOKENS tokens.
    """
    patch = [1] * len(state.axes)
    while prod(state.axes) // prod(patch) > MAX_TOKENS:
        able = [i for i, side in enumerate(state.axes) if side % (2 * patch[i]) == 0]
        if not able:
            break
        longest = max(able, key=lambda i: state.axes[i] // patch[i])
        patch[longest] *= 2
    return {
        "_class_name": "FieldTransformer",
        "sample_size": list(state.axes),
        "in_channels": state.channels,
        "patch_size": patch,
        "inputs": _told_of(inputs),
    }


def _told_of(inputs: Sequence[Input]) -> list[list[Any]]:
    return [[each.name, each.values or list(each.tensor.shape)] for each in inputs]


def _call(net: Any, x: Tensor, timestep: Tensor, inputs: Tensors, _: Tensors) -> Tensor:
    out: Tensor = net(x, timestep, inputs)
    return out


def _facts(config: Any, inputs: Sequence[Input], _: Constants) -> Facts:
    told = [[name, about if isinstance(about, int) else list(about)] for name, about in config.inputs]
    return {"inputs": (told, _told_of(inputs))}


FAMILY = Family(
    "FieldTransformer", None, _call, _facts, axes=None, tokens=True, middle=middle_of_blocks, network=FieldTransformer
)

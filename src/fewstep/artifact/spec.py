"""What a model makes images of, and from what: the parts of a manifest that networks and samplers must agree on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fewstep.artifact.classes import check_class_names
from fewstep.system.strict import Strict

__all__ = [
    "Condition",
    "Digest",
    "ImageSpec",
    "InputSpec",
    "LatentSpec",
    "Precision",
]

# What the network's layers compute in; the sampler's state is fp32 always. int8 leaves the rest in fp32 (CPUs), int8-fp16 and
# fp8 leave it in fp16 (GPUs).
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"]

# What a manifest says must not make a reader take all memory.
MAX_SIDE = 1 << 14  # pixels
MAX_SIZE = 1 << 20  # classes, tokens, numbers in a vector
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]


class ImageSpec(Strict):
    """Images the bundle makes: height and width in pixels, and the values that 0 and 255 stand for."""

    channels: Side
    height: Side
    width: Side
    low: float = -1.0
    high: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width


class LatentSpec(Strict):
    """What the sampler of a latent model works on, and the autoencoder whose decoder turns it into images.

    image = decode(latent / scaling_factor + shift_factor) in [-1, 1]. directory None: the bundle ships the decoder in its
    graphs only; digest is then what fewstep.artifact.digests.decoder_digest was with it, where that is known.
    """

    channels: Side
    height: Side
    width: Side
    scaling_factor: float = Field(gt=0)
    shift_factor: float = 0.0
    decoder: Literal["AutoencoderKL", "AutoencoderTiny"]
    directory: str | None
    digest: Digest | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width


class InputSpec(NamedTuple):
    """One tensor of a condition: its name, and its shape for one image, without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int64", "float32"]


class Condition(Strict):
    """What an image is made from.

    labels: 0 .. classes - 1, and `classes` means "none"; names says what the classes are called, where that is known.
    Where `null` is false no label means "none", and nothing can be guided.
    embeddings: (tokens, width) of a text and, where pooled > 0, one vector (pooled,) for the whole of it; what means "none" is
    given with them, as the embeddings of a negative prompt.
    """

    kind: Literal["none", "labels", "embeddings"]
    classes: Size = 0
    names: Annotated[tuple[str, ...], Field(max_length=MAX_SIZE, fail_fast=True)] = ()
    tokens: Size = 0
    width: Size = 0
    pooled: Size = 0
    null: bool = True

    @model_validator(mode="after")
    def _sizes_match_kind(self) -> Condition:
        needed = {"none": (), "labels": ("classes",), "embeddings": ("tokens", "width")}[self.kind]
        optional = ("pooled",) if self.kind == "embeddings" else ()
        for name in ("classes", "tokens", "width", "pooled"):
            size = getattr(self, name)
            if (name in needed and size == 0) or (name not in needed and name not in optional and size > 0):
                raise ValueError(f"condition {self.kind!r} does not go with {size} {name}")
        check_class_names(self.names, self.classes)
        if not self.null and self.kind != "labels":
            raise ValueError(f"only labels may be without one that means none, this condition is {self.kind!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_plain(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if (key, value) != ("null", True)}

    @property
    def guidable(self) -> bool:
        """Whether there is something that means "none", for guidance to go away from."""
        return self.kind != "none" and self.null

    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors of the condition, in the order in which networks and graphs take them."""
        if self.kind == "labels":
            return (InputSpec("labels", (), "int64"),)
        if self.kind == "embeddings":
            pooled = (InputSpec("pooled", (self.pooled,), "float32"),) if self.pooled else ()
            return (InputSpec("embeddings", (self.tokens, self.width), "float32"), *pooled)
        return ()

    def null_inputs(self) -> tuple[InputSpec, ...]:
        """What guided graphs take besides, for the condition that means "none"; labels need nothing, see the class."""
        return tuple(i._replace(name=f"null_{i.name}") for i in self.inputs()) if self.kind == "embeddings" else ()

"""The parts of a model: the network that denoises, what decodes its states. Each has a role, a class, files, and one digest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from fewstep.artifact.spec import Digest
from fewstep.sampling.parametrisation import Parametrisation
from fewstep.system.strict import Strict

__all__ = ["Component", "Constant", "DecoderEntry", "DenoiserEntry"]

Constant = float | Annotated[list[float], Field(max_length=4096, fail_fast=True)]


class _Part(Strict):
    """directory None: the bundle ships the part in its graphs alone, without files for training; digest is then what
    digests.component_digest was with them, where that is known.
    """

    kind: Annotated[str, Field(min_length=1, max_length=100, description="its class, of diffusers")]
    directory: str | None
    digest: Digest | None = None


class DenoiserEntry(_Part):
    """A network and how it becomes D(x, sigma, inputs); see fewstep.models.denoiser.

    patch: pixels of a side that are folded into channels before it. constants: what it is told besides, by name, which its
    family reads: time_ids of SDXL (original height and width, crop top and left, target height and width in pixels),
    guidance_scale of a network that embeds it (LCM).
    """

    role: Literal["denoiser"] = "denoiser"
    parametrisation: Parametrisation
    patch: PositiveInt = 1
    constants: Annotated[dict[str, Constant], Field(max_length=32)] = Field(default={})

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if (key, value) != ("constants", {})}


class DecoderEntry(_Part):
    """An autoencoder of diffusers: what it makes of state / scaling_factor + shift_factor is the output, in [-1, 1]."""

    role: Literal["decoder"] = "decoder"
    scaling_factor: float = Field(gt=0)
    shift_factor: float = 0.0


Component = Annotated[DenoiserEntry | DecoderEntry, Field(discriminator="role")]

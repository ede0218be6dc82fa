"""POST /generate: what it takes, and in which form an answer goes out: a picture, or numbers."""

from __future__ import annotations

import io
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fewstep.artifact.classes import MAX_CLASS_NAME
from fewstep.artifact.signature import Output
from fewstep.runtime.noise import MAX_SEED
from fewstep.runtime.server.numbers import json_bytes, nested
from fewstep.runtime.server.pictures import check_size, encoded

__all__ = ["GenerateRequest", "answer_bytes", "form_of", "written"]

MOST = 1024  # samples
Form = Literal["png", "webp", "json", "npy"]


def _of_an_input(values: Any) -> Any:
    if not isinstance(values, list):
        raise ValueError("an input is a list, of a value for each sample or of one for all, and no other field is called so")
    lists = [v for v in values if isinstance(v, list)]
    names = [v for v in values if isinstance(v, str)]
    numbers = [v for v in values if not isinstance(v, list | str)]
    while lists:  # numpy makes text of all where one is text, each as long as the longest
        part = lists.pop()
        lists += (v for v in part if isinstance(v, list))
        numbers += (v for v in part if not isinstance(v, list))
    if not {*map(type, numbers)} <= {int, float} or any(len(name) > MAX_CLASS_NAME for name in names):
        raise ValueError(f"values are numbers, names of at most {MAX_CLASS_NAME} characters, or lists of numbers")
    return values


Values = Annotated[list[Any], Field(min_length=1, max_length=MOST), BeforeValidator(_of_an_input)]


class GenerateRequest(BaseModel):
    """These fields, and the model's inputs by name: lists of a value for each sample, or of one for all.

    Classes are names or numbers. The seed counts up. format: png or webp, where several images come as one grid; json or npy,
    the numbers of all samples; unless said png for images, json for arrays.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Values]

    model: str | None = None
    plan: str | None = None
    samples: Annotated[int, Field(ge=1, le=MOST)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - 2047)] = 0  # room for 1024, and a number that OpenAPI's floats hold
    format: Form | None = None
    scale: Annotated[int, Field(ge=1, le=16)] = 1

    @property
    def count(self) -> int:
        """So many samples as were asked for, else as many as the longest list has values."""
        return self.samples or max(map(len, self.__pydantic_extra__.values()), default=1)

    @property
    def seeds(self) -> list[int]:
        """A seed for every sample."""
        return [self.seed + i for i in range(self.count)]

    @property
    def small(self) -> bool:
        """Whether its inputs are read in no time: a value for each, and no lists of them."""
        return not any(isinstance(value, list) for values in self.__pydantic_extra__.values() for value in values)

    @property
    def inputs(self) -> dict[str, list[Any]]:
        """Values by the names of inputs; those that are for all samples, for each. Raises ValueError for seeds."""
        given = self.__pydantic_extra__
        if "seeds" in given:
            raise ValueError("every sample has the seed after that of the one before; give the first one's, as seed")
        return {name: values * self.count if len(values) == 1 else values for name, values in given.items()}


def form_of(asked: GenerateRequest, output: Output) -> Form:
    """In which form samples go out.

    Args:
        asked: the request.
        output: of the model's signature.

    Raises:
        ValueError: for a picture of what is none, or numbers that are to be larger.
    """
    form = asked.format or ("png" if output.pictures else "json")
    if form in ("json", "npy"):
        if asked.scale != 1:
            raise ValueError("scale makes pictures larger, and numbers were asked for; leave it out")
    elif not output.pictures:
        tensor = output.tensor
        raise ValueError(f"samples are {tensor.dtype} {list(tensor.shape)}, and no pictures; ask for the format json or npy")
    return form


def answer_bytes(asked: GenerateRequest, output: Output, most: int) -> int:
    """How many bytes are held while an answer is made.

    Args:
        asked: the request.
        output: of the model's signature.
        most: bytes of JSON that there may be.

    Raises:
        ValueError: for a picture of what is none, or an answer that is too large: format and scale are the sender's choice.
    """
    tensor, form = output.tensor, form_of(asked, output)
    if form == "npy":
        return asked.count * prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    if form != "json":
        return check_size(asked.count, tensor.shape, asked.scale)
    size = json_bytes(tensor, asked.count)
    if size > most:
        raise ValueError(f"{asked.count} samples are too many for an answer in JSON; ask for the format npy, or for fewer")
    return size


def written(made: npt.NDArray[Any], asked: GenerateRequest, output: Output) -> tuple[bytes, str]:
    """Samples (B, ...) as the body of an answer, and its media type.

    Args:
        made: the output, (B, ...).
        asked: the request.
        output: of the model's signature.
    """
    form = form_of(asked, output)
    if form == "json":
        return f'{{"{output.tensor.name}":{nested(made)}}}'.encode(), "application/json"
    if form == "npy":
        file = io.BytesIO()
        np.save(file, made, allow_pickle=False)
        return file.getvalue(), "application/x-npy"
    return encoded(made, form, asked.scale), f"image/{form}"

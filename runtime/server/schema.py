"""What /openapi.json says where FastAPI cannot see it: errors, pictures, numbers, and bodies with tensors behind their JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fewstep.runtime.server.protocol import Datatype, InferRequest

__all__ = ["ERRORS", "INFER", "MADE", "METRICS", "TENSORS"]

Responses = dict[int | str, dict[str, Any]]


class Error(BaseModel):
    """What is wrong, in one sentence."""

    error: str


class Output(BaseModel):
    """A tensor of an answer, flat."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[int | float]


class InferAnswer(BaseModel):
    """An answer without tensors behind its JSON."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[Output]


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references: FastAPI keeps no definitions of a body that it does not read."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items() if key != "$defs"}


_REQUEST = InferRequest.model_json_schema()
_INPUTS = [{"name": "seeds", "datatype": "UINT64", "shape": [2], "data": [0, 1]}]
_INPUTS += [{"name": "labels", "datatype": "INT64", "shape": [2], "data": [0, 0]}]
_JSON = {"application/json": {"schema": _inlined(_REQUEST, _REQUEST["$defs"]), "example": {"inputs": _INPUTS}}}
_BYTES = {"schema": {"type": "string", "format": "binary"}}

ERRORS: Responses = {
    "4XX": {"model": Error, "description": "The request is wrong"},
    "5XX": {"model": Error, "description": "Overload, a deadline that passed, or a failure here"},
}
INFER = {"requestBody": {"required": True, "content": {**_JSON, "application/octet-stream": _BYTES}}}
TENSORS: Responses = {200: {"model": InferAnswer, "content": {"application/octet-stream": _BYTES}}}
_LISTS = {"type": "object", "additionalProperties": {"type": "array"}}
_FORMS: dict[str, Any] = {"application/json": {"schema": _LISTS}}
MADE: Responses = {200: {"content": _FORMS | dict.fromkeys(("image/png", "image/webp", "application/x-npy"), _BYTES)}}
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

"""The Open Inference Protocol (KServe v2): JSON with tensors in it or, by the binary extension, behind it.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.artifact.described import DATATYPES
from fewstep.artifact.signature import MAX_INPUTS
from fewstep.runtime.server.coding import Coding, deflated
from fewstep.runtime.server.limits import ServerLimits
from fewstep.runtime.server.numbers import listed

__all__ = ["HEADER_LENGTH", "Datatype", "InferRequest", "InputTensor", "Outputs", "answer", "parse"]

HEADER_LENGTH = "Inference-Header-Content-Length"
Datatype = Literal["UINT8", "UINT64", "INT64", "INT32", "FP32"]
Outputs: TypeAlias = Mapping[str, tuple[str, npt.NDArray[Any]]]
Size = Annotated[int, Field(ge=1, le=1 << 31)]
MAX_TIMEOUT_US = 3_600_000_000
MAX_TENSORS = 1 + 2 * MAX_INPUTS  # seeds, and what means "none" for each


class _Message(BaseModel):
    """Unknown keys are let pass, as the protocol asks for."""

    model_config = ConfigDict(extra="ignore", strict=True)


class RequestParameters(_Message):
    """plan: a sampler by name. timeout: microseconds. binary_data_output: every output goes behind the JSON."""

    plan: str | None = None
    timeout: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_US)] | None = None
    binary_data_output: bool = False


class InputParameters(_Message):
    """binary_data_size: bytes behind the JSON."""

    binary_data_size: Annotated[int, Field(ge=1, le=1 << 62)] | None = None


class OutputParameters(_Message):
    """binary_data: whether it goes behind the JSON."""

    binary_data: bool = False


class InputTensor(_Message):
    """A tensor of a request: `data` in JSON, flat or nested, or `binary_data_size` bytes behind it."""

    name: str
    datatype: Datatype
    shape: Annotated[list[Size], Field(max_length=8)]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputTensor(_Message):
    """A tensor that a request wants back."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Message):
    """The JSON of a request."""

    id: Annotated[str, Field(max_length=200)] = ""
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[OutputTensor], Field(max_length=16)] = []

    def wanted(self, outputs: Collection[str]) -> list[str]:
        """The outputs to send, of those there are. Raises ValueError for another."""
        if unknown := [wanted.name for wanted in self.outputs if wanted.name not in outputs]:
            raise ValueError(f"there is no output {unknown[0][:80]!r}; there is: {', '.join(outputs)}")
        return [output.name for output in self.outputs] or list(outputs)

    def binary(self, output: str) -> bool:
        """Whether an output goes behind the JSON."""
        for wanted in self.outputs:
            if wanted.name == output:
                return wanted.parameters.binary_data
        return self.parameters.binary_data_output


def parse(body: bytes, header_length: str | None, limits: ServerLimits) -> tuple[InferRequest, dict[str, npt.NDArray[Any]]]:
    """A request and its tensors by name.

    Args:
        body: as it was sent, inflated.
        header_length: the header of that name, the bytes of JSON where more follows.
        limits: of the JSON.

    Raises:
        ValueError: for what is not a request, in one sentence.
    """
    end = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 20
        if not digits or int(header_length) > len(body):
            raise ValueError(f"{HEADER_LENGTH} is the length of the JSON at the start of the body, got {header_length[:40]!r}")
        end = int(header_length)
    head = body[:end]
    _check_json(head, limits)
    try:
        request = InferRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"the request is not of the Open Inference Protocol: {where or 'body'}: {first['msg']}") from None
    tensors: dict[str, npt.NDArray[Any]] = {}
    for tensor in request.inputs:
        if tensor.name in tensors:
            raise ValueError(f"the input {tensor.name[:80]!r} is there twice")
        tensors[tensor.name], end = _read(tensor, body, end)
    if len({wanted.name for wanted in request.outputs}) < len(request.outputs):
        raise ValueError("an output is asked for twice")
    if end != len(body):
        raise ValueError(f"the body has {len(body) - end} bytes that belong to no input")
    return request, tensors


def _check_json(head: bytes, limits: ServerLimits) -> None:
    """Nothing else runs in Python while JSON is read: what would take long is counted, which takes none, and refused."""
    for found, most, what in (
        (len(head), limits.json_bytes, "bytes"),
        (head.count(b","), limits.json_values, "values"),
        (head.count(b"[") + head.count(b"{"), limits.json_lists, "lists"),
    ):
        if found > most:
            raise ValueError(f"the JSON of a request has at most {most} {what}, got {found}; send tensors in binary, behind it")


def _read(tensor: InputTensor, body: bytes, at: int) -> tuple[npt.NDArray[Any], int]:
    """A tensor's values, and where in the body the next one's begin."""
    name, dtype, count = tensor.name[:80], DATATYPES[tensor.datatype], prod(tensor.shape)
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise ValueError(f"the input {name!r} needs either data or binary_data_size")
    if size is not None:
        if size != count * dtype.itemsize or at + size > len(body):
            raise ValueError(
                f"the input {name!r} of shape {tensor.shape} has {count * dtype.itemsize} bytes, got binary_data_size {size}"
            )
        return np.frombuffer(body, dtype, count, at).reshape(tensor.shape), at + size
    values = _flat(tensor.data or [], tensor.shape)
    if len(values) != count or not {*map(type, values)} <= ({int, float} if dtype.kind == "f" else {int}):
        raise ValueError(f"the input {name!r} of shape {tensor.shape} needs {count} numbers of {tensor.datatype} in data")
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype).reshape(tensor.shape), at
    except (OverflowError, FloatingPointError):
        raise ValueError(f"the input {name!r} has a number that {tensor.datatype} cannot hold") from None


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Lists nested as the shape says as one; others as they are."""
    for size in shape[1:]:
        if not all(isinstance(row, list) and len(row) == size for row in data):
            break
        data = list(chain.from_iterable(data))
    return data


def answer(
    request: InferRequest,
    model: str,
    version: str,
    outputs: Outputs,
    coding: Coding | None = None,
) -> tuple[bytes, dict[str, str]]:
    """A response's body and headers.

    Args:
        request: that says what goes behind the JSON.
        model, version: that answered.
        outputs: datatype and array (B, ...), by name.
        coding: what the body is compressed in.

    Raises:
        ValueError: as `wanted` does.
    """
    message: dict[str, Any] = {"model_name": model, "model_version": version} | ({"id": request.id} if request.id else {})
    head: list[bytes | memoryview] = [_json(message)[:-1] + b',"outputs":[']
    behind: list[bytes | memoryview] = []
    for i, name in enumerate(request.wanted(outputs)):
        datatype, array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        head.append(b"," * bool(i))
        if request.binary(name):
            head.append(_json(entry | {"parameters": {"binary_data_size": array.nbytes}}))
            behind.append(np.ascontiguousarray(array).data.cast("B"))
        else:
            head += [_json(entry)[:-1] + b',"data":[', b",".join(listed(array)), b"]}"]
    head.append(b"]}")
    headers = {"Content-Type": "application/octet-stream" if behind else "application/json"}
    if behind:
        headers[HEADER_LENGTH] = str(sum(map(len, head)))
    if coding is None:
        return b"".join([*head, *behind]), headers
    return deflated([*head, *behind], coding), headers | {"Content-Encoding": coding}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

"""The messages of an ONNX file, found in its bytes without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from fewstep.artifact.wire import fields

__all__ = ["GRAPH", "MODEL", "NODE", "OPSET", "PAIR", "PROPERTY", "TENSOR", "Fields", "messages", "raw"]

# Where messages of onnx.proto hold one another, by field number.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, PAIR, FUNCTION, TRAINING, OPSET, PROPERTY = range(11)
INNER = {
    MODEL: {7: GRAPH, 8: OPSET, 14: PROPERTY, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: PAIR},
}
MAX_DEPTH = 100  # of messages in messages; deeper ones no protocol buffers library reads
Fields: TypeAlias = list[tuple[int, memoryview | int]]


def messages(model: bytes) -> Iterator[tuple[int, Fields]]:
    """Every message of a model, itself first: its kind and its fields. Raises ValueError for bytes that are no ONNX file."""
    try:
        yield from _messages(memoryview(model), MODEL, 0)
    except IndexError:
        raise ValueError("is not a readable ONNX file; export it again") from None


def raw(content: memoryview | int | None) -> bytes:
    """The bytes of a field that is written with its length; none for another, or one that is not there."""
    return bytes(content) if isinstance(content, memoryview) else b""


def _messages(message: memoryview, kind: int, depth: int) -> Iterator[tuple[int, Fields]]:
    if depth > MAX_DEPTH:
        raise IndexError("messages in messages without end")
    found = list(fields(message))
    yield kind, found
    inner = INNER.get(kind, {})
    for number, content in found:
        if number in inner and isinstance(content, memoryview):
            yield from _messages(content, inner[number], depth + 1)

"""Which files a graph reads weights from, found in its bytes without the onnx package, so that none is read unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from fewstep.bundle import Bundle
from fewstep.manifest import GraphEntry

__all__ = ["check_files", "locations"]

# Where messages of onnx.proto hold one another, by field number: what leads from a model to the tensors in it.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, PAIR, FUNCTION, TRAINING = range(9)
INNER = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: PAIR},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 100  # of messages in messages; deeper ones no protocol buffers library reads


def check_files(bundle: Bundle, graph: GraphEntry) -> None:
    """Check every file of a graph, and that it reads weights from no other.

    Raises ValueError for a file that is not what was saved, weights the manifest has no hash for, or what is no ONNX file.
    """
    for path in graph.paths:
        bundle.file(path)
    allowed = _beside(bundle, graph.file, graph.data) if graph.data else None
    for path in [path for path in (graph.file, graph.finish) if path]:
        try:
            found = locations(bundle.file(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{bundle.root.name}/{path} {error}") from None
        for location in found - {allowed}:
            raise ValueError(
                f"{bundle.root.name}/{path} reads weights from {location!r}, which the bundle has no hash for; export it again"
            )


def _beside(bundle: Bundle, file: str, data: str) -> str:
    """How a graph calls its weights: by their path from its own folder."""
    folder = PurePosixPath(file).parent
    if not PurePosixPath(data).is_relative_to(folder):
        raise ValueError(f"{bundle.root.name} keeps the weights of {file!r} in {data!r}, not beside it; export it again")
    return str(PurePosixPath(data).relative_to(folder))


def locations(model: bytes) -> set[str]:
    """The files an ONNX file reads weights from. Raises ValueError for bytes that are no ONNX file."""
    try:
        return set(_locations(memoryview(model), MODEL, 0))
    except (IndexError, UnicodeDecodeError):
        raise ValueError("is not a readable ONNX file; export it again") from None


def _locations(message: memoryview, kind: int, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise IndexError("messages in messages without end")
    if kind == PAIR:
        pair = dict(_fields(message))
        if bytes(pair.get(1, b"")) == b"location":
            yield bytes(pair.get(2, b"")).decode()
        return
    inner = INNER[kind]
    for number, content in _fields(message):
        if number in inner:
            yield from _locations(content, inner[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that are written with their length, by number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >= 1 << 32:  # others read the lower 32 bits, and so another field
            raise IndexError("a tag has 32 bits")
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise IndexError("a field ends behind its message")
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise IndexError(f"there is no kind {kind} of field")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise IndexError("a number without end")

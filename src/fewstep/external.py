"""Which files a graph reads weights from, found in its bytes without the onnx package, so that none is read unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from fewstep.bundle import Bundle
from fewstep.manifest import GraphEntry

__all__ = ["check_files", "locations"]

# Where messages of onnx.proto hold one another, by field number: what leads from a model to the tensors in it.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, PAIR, FUNCTION = range(8)
INNER = {
    MODEL: {7: GRAPH, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    FUNCTION: {7: NODE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: PAIR},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def check_files(bundle: Bundle, graph: GraphEntry) -> None:
    """Check every file of a graph, and that it reads weights from no other.

    Raises ValueError for a file that is not what was saved, weights the manifest has no hash for, or what is no ONNX file.
    """
    for path in graph.paths:
        bundle.file(path)
    allowed = str(PurePosixPath(graph.data).relative_to(PurePosixPath(graph.file).parent)) if graph.data else None
    for path in [path for path in (graph.file, graph.finish) if path]:
        try:
            found = locations(bundle.file(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{bundle.root.name}/{path} {error}") from None
        for location in found - {allowed}:
            raise ValueError(
                f"{bundle.root.name}/{path} reads weights from {location!r}, which the bundle has no hash for; export it again"
            )


def locations(model: bytes) -> set[str]:
    """The files an ONNX file reads weights from. Raises ValueError for bytes that are no ONNX file."""
    try:
        return set(_locations(memoryview(model), MODEL))
    except (IndexError, UnicodeDecodeError):
        raise ValueError("is not a readable ONNX file; export it again") from None


def _locations(message: memoryview, kind: int) -> Iterator[str]:
    waiting = [(message, kind)]  # depth is the file's choice
    while waiting:
        message, kind = waiting.pop()
        pair: dict[int, memoryview] = {}
        for number, content in _fields(message):
            inner = INNER.get(kind, {}).get(number)
            if kind == PAIR:
                pair[number] = content
            elif inner is not None:
                waiting.append((content, inner))
        if kind == PAIR and bytes(pair.get(1, b"")) == b"location":
            yield bytes(pair.get(2, b"")).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that are written with their length, by number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
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

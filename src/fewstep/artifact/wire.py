"""Protocol buffers as bytes, without the onnx package: what a device and whoever trusts no parser need of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["fields", "length_delimited", "varint_field"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message by number: those written with their length as bytes, whole numbers as such; others are left out.

    Raises IndexError for what is no message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >= 1 << 32:  # others read the lower 32 bits, and so another field
            raise IndexError("a tag has 32 bits")
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
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


def length_delimited(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or a message.

    Args:
        number: of the field.
        content: the bytes it holds.
    """
    return _written(number << 3 | BYTES) + _written(len(content)) + content


def varint_field(number: int, value: int) -> bytes:
    """A field that holds a whole number.

    Args:
        number: of the field.
        value: 0 or more.
    """
    return _written(number << 3 | VARINT) + _written(value)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise IndexError("a number without end")


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])

"""Inner values of an ONNX file as additional outputs, without the onnx package: what parity needs on a target."""

from __future__ import annotations

from fewstep.artifact.wire import length_delimited, varint_field

__all__ = ["with_outputs"]

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.output, ValueInfoProto.name and .type, TypeProto.tensor_type,
# TypeProto.Tensor.elem_type; all but the last hold messages or text and are written with their length.
GRAPH, OUTPUT, NAME, TYPE, TENSOR, ELEM = 7, 12, 1, 2, 1, 1
FLOAT = 1


def with_outputs(model: bytes, names: list[str]) -> bytes:
    """An ONNX file's bytes with the named float32 values as outputs after its own.

    Protocol buffers merge: a second `graph` behind the file adds its outputs to the first one's.

    Args:
        model: of an ONNX file; weights beside it stay where they are.
        names: of values in its graph.
    """
    outputs = b"".join(length_delimited(OUTPUT, _value(name)) for name in names)
    return model + length_delimited(GRAPH, outputs)


def _value(name: str) -> bytes:
    tensor = varint_field(ELEM, FLOAT)
    return length_delimited(NAME, name.encode()) + length_delimited(TYPE, length_delimited(TENSOR, tensor))

"""Which precision does every layer that computes really compute in?

All flavours build strongly typed networks: a layer computes in the type of what it is fed. So the parsed network, layers inside
loops included, is asked layer by layer. A quantized layer is one whose operands all come from Dequantize layers, which the
builder fuses into it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.artifact.spec import Precision

__all__ = ["kernel_types", "layer_precisions"]

_COMPUTE = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT"}
_MOVES = {"SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY"}  # what may stand between Dequantize and its layer
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
_QUANTIZED: dict[Precision, tuple[str, str]] = {"int8": ("int8", "fp32"), "int8-fp16": ("int8", "fp16"), "fp8": ("fp8", "fp16")}
_HIGHER = ("fp32", "fp16", "bf16")
# What the engine inspector calls types: "DataType": "Half" since 11, "Format/Datatype": "... FP16 format" before.
_KERNELS = {
    "fp32": r"\b(FP32|Float)\b",
    "fp16": r"\b(FP16|Half)\b",
    "bf16": r"\b(BF16|BFloat16)\b",
    "int8": r"\bInt8\b",
    "fp8": r"\bFP8\b",
}


def layer_precisions(network: Any, precision: Precision, excluded: Sequence[str]) -> dict[str, int]:
    """How many convolutions, matrix products and attentions of a parsed network compute in each precision.

    In a quantized graph a product of two activations may stay in a higher precision: there is no weight to make smaller.

    Args:
        network: of TensorRT, parsed.
        precision: of the graph.
        excluded: names of graph nodes that may stay in a higher precision, with or without the copy they are in (`eval_0/`).

    Raises:
        ValueError: with the name of a layer that computes in another precision than it should, or when none computes.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs) if layer.get_output(i)}
    wanted, rest = _QUANTIZED.get(precision, (precision, precision))
    counts: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    for layer in layers:
        if layer.type.name not in _COMPUTE:
            continue
        kind = _computes_in(layer, makers)
        counts[kind] += 1
        free = kind == rest and not _has_weights(layer, makers)
        if kind != wanted and not free and not (kind in _HIGHER and _is_excluded(layer.name, excluded)):
            wrong.append((layer.name, kind))
    if wrong:
        name, kind = wrong[0]
        raise ValueError(
            f"it was exported as {precision}, but its engine would compute {len(wrong)} of {counts.total()} layers otherwise, "
            f"first {name!r} in {kind}; export it again"
        )
    if not counts:
        raise ValueError("it has no convolution, matrix product or attention, so there is nothing to build an engine for")
    return dict(counts)


def kernel_types(information: dict[str, Any]) -> Counter[str]:
    """Precisions in the inspector's JSON of a finished engine: how many layers read or write a tensor of each."""
    counts: Counter[str] = Counter()
    for layer in information.get("Layers", []):
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])] if isinstance(layer, dict) else []
        text = " ".join(str(t.get("DataType") or t.get("Format/Datatype") or "") for t in tensors)
        counts.update(name for name, pattern in _KERNELS.items() if re.search(pattern, text, re.IGNORECASE))
    return counts


def _operands(layer: Any) -> Iterator[Any]:
    """Tensors a layer multiplies; a convolution's third is its bias, and constant kernels are no tensor at all."""
    for i in range(min(layer.num_inputs, 3 if layer.type.name == "ATTENTION_INPUT" else 2)):
        if tensor := layer.get_input(i):
            yield tensor


def _origin(tensor: Any, makers: dict[str, Any], through: set[str]) -> Any | None:
    """The layer a tensor comes from, past layers of the given kinds; None for an input of the network."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in through and maker.get_input(0):
        maker = makers.get(maker.get_input(0).name)
    return maker


def _type(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return _TYPES.get(name, name)


def _computes_in(layer: Any, makers: dict[str, Any]) -> str:
    origins = [_origin(tensor, makers, _MOVES) for tensor in _operands(layer)]
    complete = len(origins) > 1  # a kernel that is no tensor was never quantized
    if complete and all(o is not None and o.type.name == "DEQUANTIZE" for o in origins):
        types = {_type(o.get_input(0)) for o in origins if o is not None}
        if len(types) == 1:
            return types.pop()
    return _type(next(_operands(layer)))


def _has_weights(layer: Any, makers: dict[str, Any]) -> bool:
    if layer.type.name in ("CONVOLUTION", "DECONVOLUTION"):
        return True
    through = _MOVES | {"QUANTIZE", "DEQUANTIZE", "CAST"}
    origins = [_origin(tensor, makers, through) for tensor in _operands(layer)]
    return any(o is not None and o.type.name == "CONSTANT" for o in origins)


def _is_excluded(name: str, excluded: Sequence[str]) -> bool:
    name = name.removesuffix("_AttentionInput")
    return any(name == k or name.endswith(f"/{k}") for k in excluded)

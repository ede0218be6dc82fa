"""Weights of a component in one precision, once: a file beside the graphs, which all of them read.

Its content follows from the component, the precision and the trace alone, and its name from its content: a later graph finds it
there, and adds nothing to it. What is of one graph (tables by row, layers in another precision) stays in that graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from fewstep.artifact.bundle import Draft
from fewstep.exporter.graph.layer import Layer
from fewstep.exporter.graph.precision import LayerPrecision
from fewstep.exporter.graph.traced import Traced

__all__ = ["SharedWeights", "every_weight"]

PAGE, LINE = 4096, 64  # bytes: what a reader may map, and what small tensors begin at


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """The weights of a component in a precision.

    Args:
        name: of the component.
        precision: what the file is called by besides.
        digest: of the component.
        tensors: all that graphs may share, each converted when it is written and not before.
    """

    name: str
    precision: str
    digest: str
    tensors: Sequence[ir.TensorProtocol]

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each tensor begins in the file, by name."""
        found, at = {}, 0
        for tensor in self.tensors:
            step = PAGE if tensor.nbytes >= PAGE else LINE
            found[str(tensor.name)] = at = -(-at // step) * step
            at += tensor.nbytes
        return found

    @cached_property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def file(self) -> str:
        """In the bundle."""
        layout = [(str(t.name), str(t.dtype), [int(d) for d in t.shape.numpy()]) for t in self.tensors]
        key = hashlib.sha256(json.dumps([self.digest, layout]).encode()).hexdigest()[:8]
        return f"graphs/{self.name}.{self.precision}.{key}.data"

    def write(self, draft: Draft) -> bool:
        """Write the file into a draft, one tensor after the other; whether it was not there yet."""
        if (draft.root / self.file).is_file():
            return False
        with draft.new(self.file).open("wb") as file:
            for tensor in self.tensors:
                file.seek(self.offsets[str(tensor.name)])
                file.write(tensor.tobytes())
            file.truncate(max(file.tell(), 1))
        return True

    def attach(self, model: ir.Model, root: Path) -> bool:
        """Let a model read from the file what is in it; whether it reads anything.

        Args:
            model: it is changed.
            root: of the bundle that is written.
        """
        known, path, found = {str(t.name): t for t in self.tensors}, Path(self.file), False
        for value in (value for graph in model.graphs() for value in graph.initializers.values()):
            own = value.const_value
            shared = known.get(str(own.name)) if own is not None else None
            if own is None or shared is None or (own.dtype, own.nbytes) != (shared.dtype, shared.nbytes):
                continue
            value.const_value = ir.ExternalTensor(
                path.name,
                self.offsets[str(own.name)],
                own.nbytes,
                own.dtype,
                shape=ir.Shape(int(side) for side in own.shape.numpy()),
                name=str(own.name),
                base_dir=root / path.parent,
            )
            found = True
        return found


def every_weight(traced: Traced, weights: Mapping[str, Tensor], layers: LayerPrecision) -> list[ir.TensorProtocol]:
    """All weights of a trace in the order of their names, those of quantized layers as their codes.

    Args:
        traced: a network or a decoder.
        weights: by the names of the trace.
        layers: the precision of single layers.
    """
    quantized = [layer for node in traced.nodes if (layer := Layer.of(node, traced, weights)) and layers.quantizes(layer)]
    codes = {str(layer.node.inputs[1].name): layers.codes(layer)[0] for layer in quantized if layer.node.inputs[1]}
    names = sorted(name for name, value in traced.constants.items() if value.const_value is None)
    return [codes[name] if name in codes else traced.tensor(name, weights) for name in names]

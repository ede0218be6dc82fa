"""A bundle whose numbers stop being finite."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from fewstep.artifact.bundle import Bundle

__all__ = ["overflowing"]


def overflowing(bundle: Bundle, precision: str) -> Bundle:
    """The bundle with NaN in a weight of the two-step generator's graph."""
    graph = bundle.manifest.graphs[f"sid2.{precision}"]
    model = onnx.load(bundle.file(graph.file))
    (weight,) = (t for t in model.graph.initializer if t.name.endswith("conv_out.bias"))
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with bundle.edit() as draft:
        draft.new(graph.file).write_bytes(model.SerializeToString())
    return Bundle.load(bundle.root)

"""Where a sample stopped being finite: the graph once more on the CPU, with its states on the way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.artifact.inner_values import with_outputs
from fewstep.artifact.manifest import GraphEntry
from fewstep.backends.base import Array
from fewstep.backends.sessions import open_session

__all__ = ["NotFiniteError", "where_it_ended"]


class NotFiniteError(ArithmeticError):
    """A sample has NaN or infinity in it; nothing was made of it."""


def where_it_ended(bundle: Bundle, graph: GraphEntry, inputs: Mapping[str, Array]) -> str:
    """In words, the first row of a plan whose state is not finite.

    The states of a straight graph are its values; those of a Loop or an engine are not to be had, and an engine may overflow
    where ONNX Runtime on the CPU does not.

    Args:
        bundle: with the graph.
        graph: of its manifest.
        inputs: noise and the inputs of the signature, by name, (B, ...).
    """
    if not all(np.isfinite(array).all() for array in inputs.values() if array.dtype.kind == "f"):
        return "the inputs are not finite already"
    if graph.layout != "unrolled" or graph.plan is None:
        return "a loop does not show its rows; export it with --layout unrolled to see which"
    rows = bundle.plan(graph.plan).rows
    names = [f"state_{k + 1}" for k in range(rows)]
    try:
        check_files(bundle, graph)  # an engine ran: the weights beside its graph have not been looked at yet
        model = with_outputs(bundle.file(graph.file).read_bytes(), names)
        session = open_session(model, repr(graph.file), folder=bundle.file(graph.file).parent)
    except (ValueError, OSError) as error:
        return f"in which row cannot be looked up: {error}"
    for row, state in enumerate(session.run(names, dict(inputs))):
        if not np.isfinite(state).all():
            return f"from row {row + 1} of {rows} on"
    return "on the CPU all rows are finite; use fp32 or bf16 here"

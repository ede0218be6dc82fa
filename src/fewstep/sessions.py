"""ONNX Runtime sessions, opened in one way everywhere. Needs onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

__all__ = ["CPU", "ERRORS", "NoKernelError", "open_session", "reason_of"]

CPU = "CPUExecutionProvider"
# ONNX Runtime's exceptions share no base of their own, and some are plain RuntimeErrors.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)),
)


class NoKernelError(ValueError):
    """This ONNX Runtime cannot compute an operation of the graph in its precision."""


def open_session(
    model: Path | bytes,
    name: str,
    *,
    providers: Sequence[Any] = (CPU,),
    folder: Path | None = None,
    optimise: bool = True,
    threads: int | None = None,
) -> ort.InferenceSession:
    """A session for a graph, called `name` in errors. folder: where the weights beside a graph given as bytes are.

    providers: by name, or pairs of name and options. threads: of the CPU, all cores unless said.

    Raises NoKernelError where a kernel is missing, ValueError for a file that is no graph ONNX Runtime takes.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; printed, they would bring names of the graph to a terminal
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except ERRORS as error:
        reason = reason_of(error)
        if "bfloat16" in reason:
            raise NoKernelError(f"ONNX Runtime has no bf16 kernels for {name} here; use fp32 or fp16") from None
        if "NOT_IMPLEMENTED" in str(error):
            raise NoKernelError(f"ONNX Runtime {ort.__version__} cannot compute {name} here: {reason}") from None
        raise ValueError(f"ONNX Runtime {ort.__version__} refuses the graph {name}: {reason}; export it again") from None


def reason_of(error: Exception) -> str:
    """What one of ONNX Runtime's errors says, in one line and without its codes."""
    return " ".join(str(error).split(" : ", 2)[-1].split())

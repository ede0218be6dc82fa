"""ONNX Runtime sessions, opened in one way everywhere. Needs onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from fewstep.cores import usable_cores
from fewstep.forks import survive_forks

__all__ = ["CPU", "ERRORS", "LOAD_LIMIT", "NoKernelError", "load_limit_s", "open_session", "reason_of"]

CPU = "CPUExecutionProvider"
# ONNX Runtime's exceptions share no base of their own, and some are plain RuntimeErrors.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)),
)
LOAD_LIMIT = "FEWSTEP_LOAD_LIMIT_S"  # of the environment


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

    providers: by name, or pairs of name and options. threads: of the CPU, one for each core that may be used unless said; they
    sleep while they have nothing to do, for spinning takes the time of whoever else runs there.

    Raises NoKernelError where a kernel is missing, ValueError for a file that is no graph ONNX Runtime takes, or one that it
    has not opened in time (see load_limit_s).
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; printed, they would bring names of the graph to a terminal
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.intra_op_num_threads = threads or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return _opened(model, name, options, list(providers))
    except ERRORS as error:
        reason = reason_of(error)
        if "bfloat16" in reason:
            raise NoKernelError(f"ONNX Runtime has no bf16 kernels for {name} here; use fp32 or fp16") from None
        if "NOT_IMPLEMENTED" in str(error):
            raise NoKernelError(f"ONNX Runtime {ort.__version__} cannot compute {name} here: {reason}") from None
        raise ValueError(f"ONNX Runtime {ort.__version__} refuses the graph {name}: {reason}; export it again") from None


def load_limit_s() -> float:
    """Seconds that one graph may take to open: 600, or what FEWSTEP_LOAD_LIMIT_S says. Raises ValueError for no such number."""
    said = os.environ.get(LOAD_LIMIT, "600")
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{LOAD_LIMIT} is a number of seconds above 0, got {said!r}")
    return seconds


def _opened(model: Path | bytes, name: str, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    """The session, from a thread of its own: ONNX Runtime's optimiser computes what a graph says, and cannot be stopped."""
    opened: Future[ort.InferenceSession] = Future()

    def work() -> None:
        try:
            opened.set_result(ort.InferenceSession(model, options, providers=providers))
        except BaseException as error:
            opened.set_exception(error)

    limit_s = load_limit_s()
    Thread(target=work, name="fewstep-open", daemon=True).start()
    try:
        session = opened.result(timeout=limit_s)
    except TimeoutError:
        options.set_load_cancellation_flag(True)  # looked at between the optimiser's passes
        raise ValueError(
            f"ONNX Runtime has not opened the graph {name} in {limit_s:g} s; if you trust it, set {LOAD_LIMIT} to more"
        ) from None
    survive_forks(session)
    return session


def reason_of(error: Exception) -> str:
    """What one of ONNX Runtime's errors says, in one line and without its codes."""
    return " ".join(str(error).split(" : ", 2)[-1].split())

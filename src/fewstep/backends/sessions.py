"""ONNX Runtime sessions, opened in one way everywhere. Needs onnxruntime."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from fewstep.backends.cuda_libraries import load_cuda_libraries
from fewstep.backends.forks import survive_forks
from fewstep.system.cores import usable_cores

__all__ = ["CPU", "CUDA", "ERRORS", "LOAD_LIMIT", "TENSORRT", "NoKernelError", "load_limit_s", "open_session", "reason_of"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# By itself the CUDA provider computes fp32 products in TF32, which rounds to 10 bits; a graph in fp32 is to be fp32. How cuDNN
# chooses a convolution, and how memory grows, stay ONNX Runtime's: benchmarks/gpu measures the other choices.
CUDA_OPTIONS = {"use_tf32": "0"}
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
    provider: str = CPU,
    provider_options: Mapping[str, str] = {},
    folder: Path | None = None,
    optimise: bool = True,
    threads: int | None = None,
) -> ort.InferenceSession:
    """A session for a graph.

    Args:
        model: a file, or its bytes.
        name: of the graph, for errors.
        provider: what to run on, everything it cannot do on the CPU.
        provider_options: of that provider; on the CPU they are not read.
        folder: where the weights beside a graph given as bytes are.
        optimise: False runs the graph as it is written.
        threads: of the CPU, one for each core that may be used unless said; they sleep while they have nothing to do, for
            spinning takes the time of whoever else runs there.

    Raises:
        NoKernelError: where a kernel is missing.
        ValueError: for a provider that does not start, a file that is no graph ONNX Runtime takes, or one that it has not
            opened in time (see load_limit_s).
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
        session = _opened(model, name, options, _providers(provider, provider_options))
    except ERRORS as error:
        reason = reason_of(error)
        if "bfloat16" in reason:
            raise NoKernelError(f"ONNX Runtime has no bf16 kernels for {name} here; use fp32 or fp16") from None
        if "NOT_IMPLEMENTED" in str(error):
            raise NoKernelError(f"ONNX Runtime {ort.__version__} cannot compute {name} here: {reason}") from None
        if provider != CPU:
            raise ValueError(f"ONNX Runtime {ort.__version__} cannot open {name} with its {provider}: {reason}") from None
        raise ValueError(f"ONNX Runtime {ort.__version__} refuses the graph {name}: {reason}; export it again") from None
    if provider not in session.get_providers():  # where its library does not load, ONNX Runtime goes on without it
        raise ValueError(f"{provider} could not start; run `fewstep doctor` for what it lacks")
    return session


def _providers(provider: str, options: Mapping[str, str]) -> list[Any]:
    """As ONNX Runtime takes them: by name, or with options. TensorRT's leaves what it cannot parse to CUDA's."""
    if provider == CPU:
        return [CPU]
    ort.set_default_logger_severity(4)  # it prints an error for every convolution that cuDNN has no first choice for
    load_cuda_libraries()
    first = (provider, {**(CUDA_OPTIONS if provider == CUDA else {}), **options})
    return [first, *([(CUDA, CUDA_OPTIONS)] if provider == TENSORRT else []), CPU]


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
            # Its own way back to the CPU would print to stdout and hide why a provider failed.
            opened.set_result(ort.InferenceSession(model, options, providers=providers, enable_fallback=False))
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
    if said := re.search(r"CUDA failure \d+: [^;]*", str(error)):  # between the C++ around it and this machine's name
        return said[0].strip()
    return " ".join(str(error).split(" : ", 2)[-1].split())

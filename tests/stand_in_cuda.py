"""ONNX Runtime's CPU provider in its CUDA provider's place, for the code that drives the latter.

It follows the rules that matter to that code: what is on the "GPU" is a copy, options have names that ONNX Runtime knows, a
graph with control flow cannot be captured, and a session that is to capture takes no other run than from bound buffers. The
first run of a thread by a number is captured with its buffers, later ones by that number replay it, whatever they are bound to;
a run that names none has number 0, as one whose option has another name.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any

import onnx
import onnxruntime as ort

__all__ = ["CUDA", "OPTIONS", "install"]

CUDA = "CUDAExecutionProvider"
# As ONNX Runtime 1.31's library of the provider takes them; it refuses others.
OPTIONS = {"use_tf32", "enable_cuda_graph", "cudnn_conv_algo_search", "prefer_nhwc", "fuse_conv_bias", "arena_extend_strategy"}

Real, from_numpy, available = ort.InferenceSession, ort.OrtValue.ortvalue_from_numpy, ort.get_available_providers


class Session(Real):
    """A session of the CPU that says it has the provider it was asked for."""

    def __init__(self, model: Any, options: Any = None, providers: Sequence[Any] = (), **more: Any) -> None:
        asked = {p if isinstance(p, str) else p[0]: {} if isinstance(p, str) else p[1] for p in providers}
        self.asked = list(asked)
        settings = asked.get(CUDA, {})
        if unknown := settings.keys() - OPTIONS:
            raise RuntimeError(f'Unknown provider option: "{unknown.pop()}".')
        self.captures = settings.get("enable_cuda_graph") == "1"
        if self.captures and controls(model):
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as the model has control flow nodes"
            )
        self.captured: dict[tuple[int, str], Any] = {}
        super().__init__(model, options, providers=["CPUExecutionProvider"], **more)

    def get_providers(self) -> Sequence[str]:
        return self.asked

    def run(self, *arguments: Any, **more: Any) -> Any:
        assert not self.captures, "a captured graph reads and writes buffers that stay where they are"
        return super().run(*arguments, **more)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        number = graph_number(options)
        if self.captures and number != "-1":
            binding = self.captured.setdefault((get_ident(), number), binding)
        super().run_with_iobinding(binding, options)


def graph_number(options: Any) -> str:
    """By which a run is captured."""
    try:
        number: str = options.get_run_config_entry("gpu_graph_id")
    except (AttributeError, RuntimeError):
        return "0"
    return number


def controls(model: Any) -> bool:
    """Whether a graph has control flow."""
    read = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    return any(node.op_type in ("Loop", "If") for node in read.graph.node)


def copied(array: Any, device: str = "cpu", _: int = 0) -> Any:
    """What lies on the GPU is not what lies on the host."""
    return from_numpy(array.copy() if device == "cuda" else array)


def install(patch: Any = setattr) -> None:
    """Let ONNX Runtime have a CUDA provider, in this process. patch: what sets an attribute, such as pytest's monkeypatch."""
    patch(ort, "InferenceSession", Session)
    patch(ort, "get_available_providers", lambda: [CUDA, *(p for p in available() if p != CUDA)])
    patch(ort.OrtValue, "ortvalue_from_numpy", staticmethod(copied))

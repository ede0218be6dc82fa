"""A GPU played by the CPU, for fewstep.backends.tensorrt: streams that queue, capture and replay; ONNX engines.

It stands where no GPU is. It follows CUDA's rules that matter here: work on a stream happens when somebody waits for it, work
that is captured does not happen until its graph is launched, addresses in a graph are those of its capture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["Gpu", "tensorrt"]

NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


class Error(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


class Gpu:
    """A stand-in for cuda.bindings.runtime. calls: the functions that were called, in order."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self, *, capturable: bool = True) -> None:
        self.capturable, self.calls = capturable, []
        self.memory: dict[int, Any] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def push(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def cudaMallocHost(self, size: int) -> tuple[Error, int]:
        self.calls.append("cudaMallocHost")
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    cudaMalloc = cudaMallocHost

    def cudaFree(self, address: int) -> tuple[Error]:
        del self.memory[address]
        return (Error.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Error]:
        assert kind in (1, 2)
        assert stream == 7
        self.push(lambda: ctypes.memmove(to, source, size) and None)
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int]:
        assert flags == self.cudaStreamNonBlocking
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        assert stream == 7
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert self.captured is None, "waiting while capturing invalidates the capture"
        while self.queue:
            self.queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Error]:
        self.calls.append("cudaStreamBeginCapture")
        self.captured = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        graph, self.captured = self.captured, None
        return (Error.cudaSuccess, graph) if self.capturable else (Error.cudaErrorStreamCaptureUnsupported, None)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Error, Any]:
        return Error.cudaSuccess, graph

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Error]:
        self.calls.append("cudaGraphLaunch")
        self.queue += graph
        return (Error.cudaSuccess,)


class Context:
    """An execution context over an ONNX Runtime session."""

    def __init__(self, gpu: Gpu, session: ort.InferenceSession) -> None:
        self.gpu, self.session = gpu, session
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        addresses = dict(self.addresses)

        def run() -> None:
            feeds = {}
            for given in self.session.get_inputs():
                dtype, shape = np.dtype(NUMPY[given.type]), self.shapes[given.name]
                size = int(np.prod(shape)) * dtype.itemsize
                feeds[given.name] = np.frombuffer(ctypes.string_at(addresses[given.name], size), dtype).reshape(shape)
            names = [made.name for made in self.session.get_outputs()]
            for name, value in zip(names, self.session.run(names, feeds), strict=True):
                ctypes.memmove(addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)

        self.gpu.push(run)
        return True


class Engine:
    """A deserialised engine."""

    def __init__(self, gpu: Gpu, content: bytes) -> None:
        self.gpu, self.session = gpu, ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.tensors = {
            t.name: (t, mode) for mode, ts in ((0, self.session.get_inputs()), (1, self.session.get_outputs())) for t in ts
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> int:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name][0].shape)

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][0].type

    def create_execution_context(self) -> Context:
        return Context(self.gpu, self.session)


def tensorrt(gpu: Gpu, version: str = "1.7.1.116") -> Any:
    """A stand-in for the module tensorrt_rtx, whose engines are ONNX files."""

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            assert not self.engine_host_code_allowed
            try:
                return Engine(gpu, content)
            except Exception:
                return None

    return SimpleNamespace(
        __version__=version,
        Logger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT=0, OUTPUT=1),
        nptype=lambda dtype: NUMPY[dtype],
    )

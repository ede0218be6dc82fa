"""The few calls of the CUDA runtime that engines need: memory, a stream, a captured graph. By cuda-python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from fewstep.backends.base import Array, RunError, Tensor

__all__ = ["Buffers", "Cuda", "CudaStream"]


class Cuda:
    """The CUDA runtime; every call's error becomes a RunError that names it."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What a function of the runtime returns beside its error."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise RunError(f"{name}: {error.name}")
        return results[0] if len(results) == 1 else tuple(results)

    def __getattr__(self, constant: str) -> Any:
        return getattr(self._runtime, constant)


class Buffers:
    """Pinned arrays on the host and memory of the same size on the GPU, by name; freed with this object."""

    def __init__(self, cuda: Cuda, tensors: Mapping[str, Tensor], batch: int) -> None:
        self._cuda, self._pinned = cuda, []
        self.host: dict[str, Array] = {}
        self.device: dict[str, int] = {}
        for name, tensor in tensors.items():
            shape = tensor.at(batch)
            size = prod(shape) * tensor.dtype.itemsize
            address = int(cuda("cudaMallocHost", size))
            self._pinned.append(address)
            memory = np.ctypeslib.as_array((ctypes.c_byte * size).from_address(address))
            memory[:] = 0
            self.host[name] = memory.view(tensor.dtype).reshape(shape)
            self.device[name] = int(cuda("cudaMalloc", size))

    def upload(self, stream: int) -> None:
        """Queue copies of all arrays to the GPU."""
        for name, array in self.host.items():
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._cuda("cudaMemcpyAsync", self.device[name], array.ctypes.data, array.nbytes, kind, stream)

    def download(self, stream: int) -> None:
        """Queue copies of all arrays from the GPU."""
        for name, array in self.host.items():
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._cuda("cudaMemcpyAsync", array.ctypes.data, self.device[name], array.nbytes, kind, stream)

    def __del__(self) -> None:
        for address in self.device.values():
            self._cuda("cudaFree", address)
        for address in self._pinned:
            self._cuda("cudaFreeHost", address)


class CudaStream:
    """A stream, and the work on it as one captured graph where that is possible."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = int(cuda("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking))

    def capture(self, work: Callable[[], None]) -> Any:
        """The work as a graph to launch. Raises RuntimeError where something in it cannot be captured."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        finally:
            graph = self._cuda("cudaStreamEndCapture", self.handle)
        return self._cuda("cudaGraphInstantiate", graph, 0)

    def launch(self, graph: Any) -> None:
        """Queue a captured graph."""
        self._cuda("cudaGraphLaunch", graph, self.handle)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._cuda("cudaStreamSynchronize", self.handle)

    def __del__(self) -> None:
        self._cuda("cudaStreamDestroy", self.handle)

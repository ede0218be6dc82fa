"""TensorRT engines, native and RTX, through their Python API and cuda-python."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fewstep.backends.base import RunError, Tensor
from fewstep.backends.cuda import Buffers, Cuda, CudaStream

__all__ = ["EngineBinding", "EngineProgram"]


class EngineProgram:
    """An engine on the first GPU, one execution context for each binding, all on one stream.

    profiles: smallest, tuned and largest batch of each optimisation profile. Raises ValueError where TensorRT refuses the
    engine, ImportError without TensorRT or cuda-python, RuntimeError where CUDA fails.
    """

    concurrent = exact = False
    about = ""

    def __init__(
        self,
        engine: bytes,
        name: str,
        *,
        flavour: Literal["tensorrt_rtx", "tensorrt"],
        profiles: Sequence[tuple[int, int, int]],
    ) -> None:
        self._cuda = Cuda()
        self._trt: Any = importlib.import_module(flavour)
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._runtime.engine_host_code_allowed = False  # an engine is data
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise ValueError(f"{flavour} {self._trt.__version__} refuses the engine {name}; rebuild it with: fewstep build")
        self._profiles = profiles
        self.stream = CudaStream(self._cuda)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = self._trt.TensorIOMode.INPUT
        self.inputs = {n: self._tensor(n) for n in names if self._engine.get_tensor_mode(n) == given}
        self.outputs = {n: self._tensor(n) for n in names if n not in self.inputs}

    def takes(self, batch: int) -> bool:
        """See Program.takes."""
        return self._profile(batch) is not None

    def bind(self, batch: int) -> EngineBinding:
        """See Program.bind. Raises ValueError for a batch outside of its profiles."""
        profile = self._profile(batch)
        if profile is None:
            raise ValueError(f"the engine has no profile for a batch of {batch}; it has: {self._profiles}")
        context = self._engine.create_execution_context()
        context.set_optimization_profile_async(profile, self.stream.handle)
        inputs, outs = Buffers(self._cuda, self.inputs, batch), Buffers(self._cuda, self.outputs, batch)
        for name, tensor in self.inputs.items():
            context.set_input_shape(name, tensor.at(batch))
        for name, address in (inputs.device | outs.device).items():
            context.set_tensor_address(name, address)
        return EngineBinding(context, self.stream, inputs, outs)

    def prepare(self, _: Mapping[int, float], /) -> bool:
        """See Program.prepare. What there was to choose was chosen when the engine was built."""
        return False

    def _profile(self, batch: int) -> int | None:
        return next((i for i, (low, _, high) in enumerate(self._profiles) if low <= batch <= high), None)

    def _tensor(self, name: str) -> Tensor:
        shape = tuple(None if size < 0 else size for size in self._engine.get_tensor_shape(name))
        return Tensor(np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))), shape)


class EngineBinding:
    """An execution context bound to its buffers. The second run is captured as a CUDA graph, later ones launch that.

    launch: "captured", or why not, in words.
    """

    def __init__(self, context: Any, stream: CudaStream, inputs: Buffers, outputs: Buffers) -> None:
        self._context, self._stream, self._in, self._out = context, stream, inputs, outputs
        self.inputs, self.outputs = inputs.host, outputs.host
        self.launch = "plain, not run yet"
        self._graph: Any = None

    def run(self) -> None:
        """See Binding.run."""
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._work()
        self._stream.wait()
        if self.launch == "plain, not run yet":  # kernels are loaded, and compiled, by the first run
            self._capture()

    def _work(self) -> None:
        """Queue copies and execution; captured or not, the same."""
        self._in.upload(self._stream.handle)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RunError("TensorRT could not run the engine")
        self._out.download(self._stream.handle)

    def _capture(self) -> None:
        try:
            self._graph = self._stream.capture(self._work)
            self.launch = "captured"
        except RuntimeError as error:
            self.launch = f"plain, for it cannot be captured ({error})"

"""Graphs in ONNX Runtime: on the CPU, or on a GPU by its CUDA or TensorRT provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fewstep.backends.base import Array, RunError, Tensor, buffers, first_rows
from fewstep.backends.sessions import CPU, CUDA, ERRORS, open_session, reason_of
from fewstep.backends.threads import Sessions

__all__ = ["OnnxProgram"]

NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
# Which captured graph a run replays, of the run's options; -1 neither captures nor replays. ONNX Runtime ignores a name that it
# does not know, and then replays the session's first graph for all: buffers of another size would stay as they are.
GRAPH_ID, PLAIN_LAUNCH = "gpu_graph_id", "-1"


class OnnxProgram:
    """A graph in a session of its own; on the CPU in two where small batches are faster with fewer threads than large ones.

    provider: what to run on, everything it cannot do on the CPU. threads: of the CPU, one for each core that may be used unless
    said. cuda_graphs: capture a graph for each binding where the provider is CUDA, and runs every node of it.

    Raises ValueError as fewstep.backends.sessions.open_session does.
    """

    def __init__(
        self, model: Path | bytes, name: str, *, provider: str = CPU, threads: int | None = None, cuda_graphs: bool = False
    ) -> None:
        self.gpu = provider != CPU
        self.concurrent = self.exact = not self.gpu
        self.captures, self._why_plain = cuda_graphs and provider == CUDA, ""

        def open_with(n: int) -> ort.InferenceSession:
            options = {"enable_cuda_graph": "1"} if self.captures else {}
            return open_session(model, name, provider=provider, provider_options=options, threads=n)

        try:
            self._sessions = Sessions(open_with, threads)
        except ValueError as error:
            if not self.captures:
                raise
            self.captures = False
            self._sessions = Sessions(open_with, threads)
            self._why_plain = f"no CUDA graphs: {error}"
        session = self._sessions.at(1)
        self.inputs = {given.name: _tensor(given) for given in session.get_inputs()}
        self.outputs = {made.name: _tensor(made) for made in session.get_outputs()}
        self._graph_ids = count(1)

    @property
    def about(self) -> str:
        """See Program.about."""
        return self._why_plain if self.gpu else self._sessions.about

    def prepare(self, first_s: Mapping[int, float], /) -> bool:
        """See Program.prepare."""
        return not self.gpu and self._sessions.choose(first_s, self._run_in)

    def _run_in(self, session: ort.InferenceSession, batch: int) -> Callable[[], None]:
        return OnnxBinding(self, session, buffers(self.inputs, batch), buffers(self.outputs, batch)).run

    def session(self, batch: int) -> ort.InferenceSession:
        """The session that batches of a size run in."""
        return self._sessions.at(batch)

    def takes(self, batch: int) -> bool:
        """See Program.takes."""
        return batch > 0

    def bind(self, batch: int) -> OnnxBinding | OnnxGpuBinding:
        """See Program.bind."""
        session = self.session(batch)
        if not self.gpu:
            return OnnxBinding(self, session, buffers(self.inputs, batch), buffers(self.outputs, batch))
        graph = str(next(self._graph_ids)) if self.captures else PLAIN_LAUNCH
        return OnnxGpuBinding(session, buffers(self.inputs, batch), buffers(self.outputs, batch), graph)


class OnnxBinding:
    """numpy arrays that the session reads and writes where they are."""

    def __init__(
        self, program: OnnxProgram, session: ort.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._program, self._session, self._binding = program, session, session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def run(self) -> None:
        """See Binding.run."""
        _run(self._session, self._binding)

    def narrowed(self, batch: int) -> OnnxBinding:
        """See Binding.narrowed."""
        program = self._program
        inputs, outputs = first_rows(program.inputs, self.inputs, batch), first_rows(program.outputs, self.outputs, batch)
        return OnnxBinding(program, program.session(batch), inputs, outputs)


class OnnxGpuBinding:
    """Arrays on the host and their twins on the GPU, at addresses that a captured CUDA graph may keep."""

    def __init__(
        self, session: ort.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array], graph: str
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._session, self._binding, self._options = session, session.io_binding(), ort.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, graph)
        self._device_inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in inputs.items()}
        self._device_outputs = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in outputs.items()}
        for name, value in self._device_inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._device_outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """See Binding.run."""
        for name, array in self.inputs.items():
            self._device_inputs[name].update_inplace(array)
        _run(self._session, self._binding, self._options)
        for name, array in self.outputs.items():
            np.copyto(array, self._device_outputs[name].numpy())


def _run(session: ort.InferenceSession, binding: Any, options: Any = None) -> None:
    try:
        session.run_with_iobinding(binding, options)
    except ERRORS as error:
        raise RunError(f"ONNX Runtime could not run the graph: {reason_of(error)}") from None


def _tensor(argument: Any) -> Tensor:
    """ONNX Runtime's description of an input or output. Only the batch has no number."""
    if argument.type not in NUMPY:
        raise ValueError(f"the graph has {argument.name!r} as {argument.type}, which no graph of a bundle has; export it again")
    return Tensor(np.dtype(NUMPY[argument.type]), tuple(size if isinstance(size, int) else None for size in argument.shape))

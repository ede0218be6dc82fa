"""The process that builds one engine: reads a Request as JSON from stdin, writes progress and the result as JSON lines.

A process of its own because TensorRT spends most of a build in single native steps that no thread can interrupt, because a
crash in there must not take the caller along, and because Polygraphy fixes its flavour when it is imported. When stdin ends,
the caller is gone or wants no engine any more: the build is cancelled through TensorRT's progress monitor, and where a step
takes too long to notice, the process ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.exporter.engine.phases import Phases
from fewstep.exporter.engine.precision_truth import kernel_types, layer_precisions

if TYPE_CHECKING:
    from fewstep.artifact.manifest import EngineFlag  # which the process does without
    from fewstep.artifact.spec import Precision

__all__ = ["GRACE_SECONDS", "Request", "main"]

GRACE_SECONDS = 1.5
REPORT_EVERY_SECONDS = 0.1
Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Request:
    """An engine to build.

    Args:
        flavour: the module, tensorrt_rtx or tensorrt.
        strongly_typed: to be asked for, see Flavour.
        graph: path of the ONNX file.
        engine: path to write.
        profiles: smallest, tuned and largest batch of each.
        targets: architectures (SM); none for what the flavour covers by default.
        precision: of the layers; None where they are not checked (the step layout's second graph computes nothing).
        excluded: layers that may stay in a higher one.
        inspect: read the engine back, on a GPU.
        workspace_bytes, level, timing_cache, flags: as for EngineSettings.
    """

    flavour: str
    strongly_typed: bool
    graph: str
    engine: str
    profiles: list[tuple[int, int, int]]
    targets: list[str]
    precision: Precision | None
    excluded: list[str]
    inspect: bool
    workspace_bytes: int | None = None
    level: int | None = None
    timing_cache: str | None = None
    flags: tuple[EngineFlag, ...] = ()


def main() -> None:
    """Serve one request. The result is {"layers", "inspected"} or {"refused": sentence}."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # native code prints where it likes
    request = Request(**json.loads(sys.stdin.readline()))
    stopped = threading.Event()
    threading.Thread(target=_watch, args=(stopped,), daemon=True).start()

    speaking = threading.Lock()  # TensorRT reports from several threads

    def say(message: dict[str, Any]) -> None:
        with speaking, contextlib.suppress(BrokenPipeError):
            channel.write(json.dumps(message) + "\n")

    log = io.StringIO()
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            say(build(request, say, stopped))
        except ValueError as error:
            say({"refused": str(error)})
        except PolygraphyException as error:
            say({"refused": _reason(log.getvalue()) or str(error)})


def build(request: Request, say: Say, stopped: threading.Event) -> dict[str, Any]:
    """Parse, check the types, build, write the engine. Raises PolygraphyException for what TensorRT refuses."""
    import importlib

    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath

    trt = importlib.import_module(request.flavour)
    builder, network, parser = NetworkFromOnnxPath(request.graph, strongly_typed=request.strongly_typed)()
    layers = layer_precisions(network, request.precision, request.excluded) if request.precision else {}
    config = _config(trt, request, network, _monitor(trt, say, stopped))
    save = request.timing_cache
    engine = bytes(EngineBytesFromNetwork((builder, network, parser), config=config, save_timing_cache=save)())
    Path(request.engine).write_bytes(engine)
    return {"layers": layers, "inspected": _inspect(trt, engine, request.precision) if request.inspect else False}


def _config(trt: Any, request: Request, network: Any, monitor: Any) -> Any:
    """Polygraphy's configuration for either flavour, with true fp32 where the graph says fp32."""
    from polygraphy.backend.trt import PostprocessConfig

    limits = {trt.MemoryPoolType.WORKSPACE: request.workspace_bytes} if request.workspace_bytes else None
    common: dict[str, Any] = {
        "profiles": [_profile(network, sizes) for sizes in request.profiles],
        "memory_pool_limits": limits,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": monitor,
        "refittable": "refit" in request.flags,
        "strip_plan": "strip-plan" in request.flags,
        "version_compatible": "version-compatible" in request.flags,
        "weight_streaming": "weight-streaming" in request.flags,
    }
    if request.flavour == "tensorrt_rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [(int(t[:-1]), int(t[-1])) for t in request.targets] or None
        config = CreateConfigRTX(compute_capabilities=capabilities, **common)
    else:
        from polygraphy.backend.trt import CreateConfig

        config = CreateConfig(builder_optimization_level=request.level, load_timing_cache=request.timing_cache, **common)
    # TF32 is on by default and rounds fp32 products to 10 bits; Polygraphy clears it for the native flavour only.
    return PostprocessConfig(config, lambda _builder, _network, config: config.clear_flag(trt.BuilderFlag.TF32))


def _profile(network: Any, sizes: tuple[int, int, int]) -> Any:
    """Every input whose first dimension is dynamic gets the batch; the others are as they are."""
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if shape and shape[0] == -1:
            profile.add(tensor.name, *((size, *shape[1:]) for size in sizes))
    return profile


def _monitor(trt: Any, say: Say, stopped: threading.Event) -> Any:
    phases, shown = Phases(), 0.0

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)
            report(always=True)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            phases.step(phase_name)
            report()
            return not stopped.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    def report(*, always: bool = False) -> None:
        nonlocal shown
        if always or time.monotonic() - shown > REPORT_EVERY_SECONDS:
            shown = time.monotonic()
            done, phase = phases.now()
            say({"done": done, "phase": phase})

    return Monitor()


def _inspect(trt: Any, engine: bytes, precision: Precision | None) -> bool:
    """Read the finished engine back on this GPU. Raises ValueError when none of its kernels has the asked precision."""
    from polygraphy.backend.trt import EngineFromBytes

    inspector = EngineFromBytes(engine)().create_engine_inspector()
    information = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    found, asked = kernel_types(information), (precision or "fp32").split("-")[0]
    if not found:
        return False  # this version's JSON names no types
    if not found[asked]:
        raise ValueError(f"it was exported as {precision}, but no kernel of its engine has that type (it has {dict(found)})")
    return True


def _watch(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()
    time.sleep(GRACE_SECONDS)
    os._exit(130)


def _reason(log: str) -> str:
    """What went wrong by Polygraphy's log, on one line: the parser's conclusion about a node, else the first error."""
    lines = [line.removeprefix("[E]").strip() for line in log.splitlines() if line.startswith("[E]")]
    return next((line for line in lines if line.startswith("In node")), lines[0] if lines else "")[:400]


if __name__ == "__main__":
    main()

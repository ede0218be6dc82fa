"""Whether a built engine can run here. What drives engines (exporter, runtime) asks this; nothing is loaded on a GPU."""

from __future__ import annotations

import importlib
import importlib.util

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import EngineEntry
from fewstep.system.machine import Machine

__all__ = ["LARGEST_BATCH", "load_tensorrt", "unfit"]

LARGEST_BATCH = 32  # that the runtime makes at once, and engines are tuned for, unless told otherwise


def load_tensorrt(flavour: str) -> object | None:
    """The module tensorrt or tensorrt_rtx, or None where it is not installed.

    Raises ValueError for one that is there and does not load.
    """
    if importlib.util.find_spec(flavour) is None:
        return None
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise ValueError(f"{flavour} is installed but does not load ({error}); reinstall it") from None


def unfit(bundle: Bundle, engine: EngineEntry, machine: Machine) -> str:
    """Why an engine cannot run on a machine, or "".

    Args:
        bundle: with the engine's graph.
        engine: of its manifest.
        machine: to run it on.

    Raises:
        ValueError: where TensorRT is installed and does not load.
    """
    key, rebuild = engine.key, f"rebuild it with: fewstep build {bundle.root.name}"
    graph, files = bundle.manifest.graphs[engine.graph], bundle.manifest.files
    parts = [files[path].sha256 if path else None for path in (graph.file, graph.postprocess)]
    data = [files[path].sha256 for path in graph.data]
    if (parts, data) != ([key.graph_sha256, key.postprocess_sha256], key.data_sha256):
        return f"its graph was exported again since; {rebuild}"
    if machine.sm is None:
        return "no NVIDIA GPU here"
    version = getattr(load_tensorrt(key.flavour), "__version__", None)
    if version != key.version:
        return f"it was built by {key.flavour} {key.version}, here is {version or 'none'}; {rebuild}"
    if key.targets and machine.sm not in key.targets:
        return f"it was built for SM {', '.join(key.targets)}, this GPU is SM {machine.sm}; {rebuild}"
    if key.gpu is not None and key.gpu != machine.gpu:
        return f"it was built on {key.gpu}, this is {machine.gpu}; {rebuild}"
    return ""

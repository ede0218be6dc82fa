"""TensorRT engines from a bundle's graphs, through Polygraphy; works without a GPU in the TensorRT-RTX flavour.

TensorRT-RTX and TensorRT 11 are strongly typed: an engine computes in the precision the graph spells out. What the parsed
network will really compute in is read back layer by layer and compared with what the graph was exported for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.bundle import Bundle
from fewstep.manifest import EngineEntry, GraphEntry
from fewstep.progress import Track, silent

__all__ = ["TARGETS", "build_engines"]

TARGETS = ("75", "80", "86", "89", "120", "121")  # GPU architectures (SM) that TensorRT-RTX 1.7 compiles for


def build_engines(
    bundle: Bundle,
    graphs: Sequence[str],
    *,
    targets: list[str] | None = None,
    batch: tuple[int, int, int] = (1, 4, 16),
    track: Track = silent,
) -> Bundle:
    """Build a TensorRT-RTX engine for each named graph and put it into the bundle, replacing an older one.

    targets: GPU architectures such as "89"; by default one engine that compiles its kernels on the GPU it first meets.
    batch: smallest, usual and largest batch. Raises ValueError for settings or a graph that TensorRT refuses, and when
    the engine would not compute in the graph's precision.
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise ValueError(f"an engine needs 1 <= smallest <= usual <= largest batch, got {batch}")
    if unknown := sorted(set(targets or ()) - set(TARGETS)):
        raise ValueError(f"TensorRT-RTX builds for SM {', '.join(TARGETS)}, not {', '.join(unknown)}")
    entries = [(name, bundle.pick("graph", name, bundle.manifest.graphs)) for name in graphs]
    _load_flavour()
    with bundle.edit() as draft:
        for i in track(range(len(entries)), "build engines"):
            name, graph = entries[i]
            engine, entry = _build(bundle, name, graph, targets or [], batch)
            draft.new(entry.file).write_bytes(engine)
            draft.manifest.engines[name] = entry
    return Bundle.load(bundle.root)


def _load_flavour() -> Any:
    """Import TensorRT-RTX with Polygraphy set to drive it. Raises ValueError when either is missing."""
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when polygraphy is imported
    try:
        import tensorrt_rtx
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise ValueError(f"building engines needs {error.name}; install it with: pip install 'fewstep[rtx]'") from None
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    return tensorrt_rtx


def _build(
    bundle: Bundle, name: str, graph: GraphEntry, targets: list[str], batch: tuple[int, int, int]
) -> tuple[bytes, EngineEntry]:
    trt = _load_flavour()
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath, Profile
    from polygraphy.exception import PolygraphyException

    profile = Profile()
    try:
        builder, network, parser = NetworkFromOnnxPath(str(bundle.file(graph.file)))()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            profile.add(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batch))
        layers = _precisions(trt, network)
        _refuse_other_precision(name, graph.precision, layers)
        config = CreateConfigRTX(profiles=[profile], compute_capabilities=[(int(t[:-1]), int(t[-1])) for t in targets] or None)
        engine = EngineBytesFromNetwork((builder, network, parser), config=config)()
    except PolygraphyException as error:
        raise ValueError(f"TensorRT-RTX {trt.__version__} refuses the graph {name!r}: {error}") from None
    return bytes(engine), EngineEntry(
        file=f"engines/{Path(graph.file).stem}.rtx.engine",
        graph=name,
        graph_sha256=bundle.manifest.files[graph.file].sha256,
        flavour="tensorrt_rtx",
        version=trt.__version__,
        targets=targets,
        precision=graph.precision,
        batch=batch,
        layers=layers,
    )


def _precisions(trt: Any, network: Any) -> dict[str, int]:
    """How many convolutions and matrix products compute in each type."""
    compute = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    names = {trt.float32: "fp32", trt.float16: "fp16"}
    layers = (network.get_layer(i) for i in range(network.num_layers))
    types = (layer.get_output(0).dtype for layer in layers if layer.type in compute)
    return dict(Counter(names.get(t, str(t)) for t in types))


def _refuse_other_precision(name: str, asked: str, layers: dict[str, int]) -> None:
    if set(layers) != {asked}:
        raise ValueError(
            f"the graph {name!r} was exported as {asked} but its engine would compute in {layers}; export it again"
        )

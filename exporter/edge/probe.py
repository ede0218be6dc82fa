"""One batch through a bundle's graph in ONNX Runtime: what every conversion of the graph is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.artifact.manifest import GraphEntry
from fewstep.artifact.signature import Signature
from fewstep.backends.sessions import open_session

__all__ = ["Probe", "probe"]

BATCH = 4


@dataclass(frozen=True)
class Probe:
    """A graph's inputs, and what it makes of them.

    Args:
        feeds: noise and the inputs of the signature, by name, (B, ...).
        outputs: what output and sample are called.
        output: (B, ...), of the signature.
        sample: (B, C, ...) float32.
        scale: what differences of the sample are counted in, see the outputs of a signature.
    """

    feeds: dict[str, npt.NDArray[Any]]
    outputs: list[str]
    output: npt.NDArray[Any]
    sample: npt.NDArray[np.float32]
    scale: float

    def differs(self, output: npt.NDArray[Any], sample: npt.NDArray[np.float32]) -> tuple[float, float]:
        """Largest |difference| of the sample, and of the output.

        Args:
            output, sample: what another form of the graph makes of the same feeds.
        """
        wide = np.abs(output.astype(np.float64) - self.output)
        return float(np.abs(sample - self.sample).max()) / self.scale, float(wide.max())


def probe(bundle: Bundle, name: str) -> Probe:
    """Run a graph that holds a whole plan on four samples, the last from what means "none".

    Args:
        bundle: with the graph.
        name: of the graph.

    Raises:
        ValueError: for a graph there is not, is not what was saved, or does not open.
    """
    graph: GraphEntry = bundle.pick("graph", name, bundle.manifest.graphs)
    check_files(bundle, graph)
    running, signature = open_session(bundle.file(graph.file), repr(name)), bundle.manifest.signature
    guided = graph.plan is not None and bundle.plan(graph.plan).guided
    feeds, outputs = _feeds(running, _examples(signature, guided=guided)), [signature.output.tensor.name, "sample"]
    output, sample = running.run(outputs, feeds)
    return Probe(feeds, outputs, output, sample, signature.output.scale(sample))


def _examples(signature: Signature, *, guided: bool) -> dict[str, npt.NDArray[Any]]:
    examples = signature.example(BATCH, guided=guided)
    for each in signature.inputs:
        if each.null_constant is not None:
            examples[each.name][-1] = each.null_constant
    return examples


def _feeds(running: ort.InferenceSession, examples: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    shapes = {given.name: given.shape for given in running.get_inputs()}
    if unknown := sorted(shapes.keys() - examples.keys() - {"noise"}):
        takes = " and ".join(["noise", *examples])
        raise ValueError(f"graphs of this bundle are made from {takes}; this one also takes {', '.join(unknown)}")
    generator = np.random.Generator(np.random.Philox(key=0))
    noise = generator.standard_normal((BATCH, *shapes["noise"][1:]), dtype=np.float32)
    return {"noise": noise} | {name: examples[name] for name in shapes if name != "noise"}

"""One batch through a bundle's graph in ONNX Runtime: what every conversion of the graph is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files
from fewstep.artifact.manifest import Condition, GraphEntry
from fewstep.backends.sessions import open_session

__all__ = ["Probe", "probe"]

BATCH = 4


@dataclass(frozen=True)
class Probe:
    """A graph's inputs, and its outputs images (B, H, W, C) uint8 and sample (B, C, H, W) float32."""

    feeds: dict[str, npt.NDArray[np.generic]]
    images: npt.NDArray[np.uint8]
    sample: npt.NDArray[np.float32]

    def differs(self, images: npt.NDArray[np.uint8], sample: npt.NDArray[np.float32]) -> tuple[float, int]:
        """Largest |difference| of the sample, and of the images in levels."""
        levels = np.abs(images.astype(int) - self.images.astype(int)).max()
        return float(np.abs(sample - self.sample).max()), int(levels)


def probe(bundle: Bundle, name: str) -> Probe:
    """Run a graph that holds a whole plan on four images, the last without a class. Raises ValueError where it cannot run."""
    graph: GraphEntry = bundle.pick("graph", name, bundle.manifest.graphs)
    check_files(bundle, graph)
    running = open_session(bundle.file(graph.file), repr(name))
    feeds = _feeds(running, bundle.manifest.condition)
    images, sample = running.run(["images", "sample"], feeds)
    return Probe(feeds, images, sample)


def _feeds(running: ort.InferenceSession, condition: Condition) -> dict[str, npt.NDArray[np.generic]]:
    shapes = {given.name: given.shape for given in running.get_inputs()}
    if unknown := set(shapes) - {"noise", "labels"}:
        raise ValueError(f"packages hold graphs made from noise and labels; this one also takes {', '.join(sorted(unknown))}")
    generator = np.random.Generator(np.random.Philox(key=0))
    noise = generator.standard_normal((BATCH, *shapes["noise"][1:]), dtype=np.float32)
    labels = np.append(np.arange(BATCH - 1) % max(condition.classes, 1), condition.classes)
    return {"noise": noise} | ({"labels": labels} if "labels" in shapes else {})

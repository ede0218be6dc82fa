"""Real samples as training takes them: opened wherever they lie, and read ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import Input
from fewstep.data import Samples, numbered_like, open_images
from fewstep.data.arrays import is_arrays, open_arrays
from fewstep.data.latents import Latents, is_latents, open_latents
from fewstep.data.stream import is_url, open_stream
from fewstep.system.cores import usable_cores
from fewstep.system.progress import Track, silent
from fewstep.trainer.draws import Draws

__all__ = ["Loader", "examples_like", "is_of_images", "open_examples", "samples_of"]

THREADS = min(usable_cores(), 8)
ANNOUNCED = 32  # steps ahead
Part: TypeAlias = tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]


def open_examples(
    source: str, *, resolution: int | None = None, inputs: Sequence[Input] | None = None, track: Track = silent
) -> Samples:
    """Training samples of a source that `open_images`, `open_stream` or `open_arrays` knows, or latents that `encode` wrote.

    Args:
        source: a name, a path or a URL.
        resolution: side in pixels that images are resized to; as they are unless given.
        inputs: what samples are made from, where that lies elsewhere; labels number it then.
        track: shows progress.

    Raises:
        ValueError: for samples that cannot be read, or options that do not go with them.
        OSError: for a source there is not, or cannot be reached.
    """
    path = Path(source)
    if is_url(source):
        return open_stream(source, resolution=resolution, inputs=inputs)
    arrays = path.exists() and is_arrays(path)
    if resolution and (arrays or is_latents(path)):
        raise ValueError(
            f"{source} holds {'arrays' if arrays else 'latents'}, whose size is what it is; leave --resolution out"
        )
    if arrays:
        found = open_arrays(path)
        if inputs and found.arrays:
            raise ValueError(f"{source} has what its samples are made from; leave --inputs out")
        return found.made_from(inputs) if inputs else found
    if is_latents(path):
        return open_latents(path, inputs=inputs)
    return open_images(source, resolution=resolution, inputs=inputs, track=track)


def examples_like(bundle: Bundle, source: str, *, rows: bool, track: Track = silent) -> Samples:
    """Training samples like those that a bundle makes.

    Args:
        bundle: whose kind of samples they are to be.
        source: as for `open_examples`.
        rows: their labels number rows of arrays that are given elsewhere.
        track: shows progress.

    Raises:
        ValueError: as `open_examples` and `samples_of` do.
        OSError: as `open_examples` does.
    """
    manifest = bundle.manifest
    found = open_examples(
        source,
        resolution=manifest.output.shape[1] if manifest.output.pictures and is_of_images(source) else None,
        inputs=manifest.signature.inputs if rows else None,
        track=track,
    )
    return samples_of(bundle, found)


def is_of_images(source: str) -> bool:
    """Whether a source is a data set here whose samples are decoded from images: no stream, no latents, no arrays."""
    path = Path(source)
    return not (is_url(source) or is_latents(path) or (path.exists() and is_arrays(path)))


def samples_of(bundle: Bundle, samples: Samples) -> Samples:
    """Samples whose labels are the bundle's numbers of classes.

    Args:
        bundle: that knows the classes, the state and the output.
        samples: real ones, of any source.

    Raises:
        ValueError: for others than it makes.
    """
    manifest, samples = bundle.manifest, numbered_like(bundle, samples)
    entry = samples.entry if isinstance(samples, Latents) else None
    made = manifest.decoder.model_copy(update={"directory": None, "digest": None}) if manifest.decoder else None
    if entry != made or samples.state != manifest.state or not manifest.signature.alike(samples.signature):
        raise ValueError(
            f"{bundle.root.name} makes other samples than {samples.source} holds; give real ones like those it was trained on"
        )
    return samples.of_signature(manifest.signature)


class Loader:
    """Batches of real samples. Those of the next step are decoded by threads while a step is computed."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.pool = ThreadPoolExecutor(THREADS, "fewstep-data")
        self.coming: dict[tuple[int, ...], list[Future[Part]]] = {}

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """States (B, C, ...) on the device of `draws`, and their labels (B,) on the CPU."""
        here, following = (*draws.seed, draws.step, draws.rank), (*draws.seed, draws.step + 1, draws.rank)
        parts = self.coming.pop(here, None) or self._begin(draws, draws.step)
        self.coming = {key: value for key, value in self.coming.items() if key[:-1] == here[:-1]}
        self.coming[following] = self._begin(draws, draws.step + 1)
        self.samples.announce(self._positions(draws, draws.step + ANNOUNCED))
        values, labels = (np.concatenate(column) for column in zip(*(part.result() for part in parts), strict=True))
        states: Tensor = self.samples.states(torch.from_numpy(values).to(draws.device), draws.normal)
        return states, torch.from_numpy(labels)

    def _positions(self, draws: Draws, step: int) -> npt.NDArray[np.int64]:
        return self.samples.order(step, draws.batch, draws.seed)[draws.rank :: draws.processes]

    def _begin(self, draws: Draws, step: int) -> list[Future[Part]]:
        at = self._positions(draws, step)
        return [self.pool.submit(self.samples.__getitem__, part) for part in np.array_split(at, min(THREADS, len(at)))]

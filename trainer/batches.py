"""Real images as training takes them: opened wherever they lie, and read ahead of the step that needs them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.manifest import Condition
from fewstep.data import Images, open_images
from fewstep.data.latents import is_latents, open_latents
from fewstep.data.stream import is_url, open_stream
from fewstep.system.cores import usable_cores
from fewstep.system.progress import Track, silent
from fewstep.trainer.draws import Draws

__all__ = ["Loader", "open_examples"]

THREADS = min(usable_cores(), 8)
ANNOUNCED = 32  # steps ahead
Part: TypeAlias = tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]


def open_examples(
    source: str, *, resolution: int | None = None, embeddings: Condition | None = None, track: Track = silent
) -> Images:
    """Training images of a source that `open_images` or `open_stream` knows, or the latents that `fewstep encode` wrote.

    Raises ValueError or OSError as these do.
    """
    if is_url(source):
        return open_stream(source, resolution=resolution, embeddings=embeddings)
    if is_latents(Path(source)):
        if resolution:
            raise ValueError(f"{source} holds latents, whose size is what it is; give --resolution to fewstep encode")
        return open_latents(Path(source), embeddings=embeddings)
    return open_images(source, resolution=resolution, embeddings=embeddings, track=track)


class Loader:
    """Batches of real images. Those of the next step are decoded by threads while a step is computed."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.pool = ThreadPoolExecutor(THREADS, "fewstep-images")
        self.coming: dict[tuple[int, ...], list[Future[Part]]] = {}

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images in the network's space, (B, C, H, W) on the device of `draws`, and their labels (B,) on the CPU."""
        here, following = (*draws.seed, draws.step, draws.rank), (*draws.seed, draws.step + 1, draws.rank)
        parts = self.coming.pop(here, None) or self._begin(draws, draws.step)
        self.coming = {key: value for key, value in self.coming.items() if key[:-1] == here[:-1]}
        self.coming[following] = self._begin(draws, draws.step + 1)
        self.images.announce(self._positions(draws, draws.step + ANNOUNCED))
        pixels, labels = (np.concatenate(column) for column in zip(*(part.result() for part in parts), strict=True))
        return self._in_range(torch.from_numpy(pixels).to(draws.device), draws), torch.from_numpy(labels)

    def _positions(self, draws: Draws, step: int) -> npt.NDArray[np.int64]:
        return self.images.order(step, draws.batch, draws.seed)[draws.rank :: draws.processes]

    def _begin(self, draws: Draws, step: int) -> list[Future[Part]]:
        at = self._positions(draws, step)
        return [self.pool.submit(self.images.__getitem__, part) for part in np.array_split(at, min(THREADS, len(at)))]

    def _in_range(self, values: Tensor, draws: Draws) -> Tensor:
        """Bytes as numbers in low .. high; latents drawn from the mean and deviation that the encoder made of an image."""
        if values.dtype == torch.uint8:
            low, high = self.images.image.low, self.images.image.high
            return low + values.float() * ((high - low) / 255)
        channels, *sides = self.images.state_shape
        mean, deviation = values[:, :channels].float(), values[:, channels:].float()
        return mean + deviation * draws.normal(channels, *sides) if deviation.numel() else mean

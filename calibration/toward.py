"""What a fitted table is to come near to, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep.calibration.endtoend import Energy, Loss, Paired, pixels
from fewstep.calibration.features import FITTING, feature_network
from fewstep.calibration.teacher import Teacher
from fewstep.data import batches, open_images
from fewstep.progress import Track, silent

__all__ = ["loss_toward"]


def loss_toward(toward: str, data: str | None, *, track: Track = silent) -> Callable[[Teacher], Loss]:
    """pixels, features or real; the last two measure in a classifier of the training images, `data` as for open_images.

    Raises ValueError for another word, or where images are missing.
    """
    if toward == "pixels":
        return lambda _: pixels
    if toward not in ("features", "real"):
        raise ValueError(f"a table is fitted toward pixels, features or real, got {toward!r}")
    if data is None:
        raise ValueError(f"toward {toward} needs images for its features; name them with --data, or fit toward pixels")
    images = open_images(data)
    model = feature_network("classifier", images, seed=FITTING, track=track)
    if toward == "features":
        return lambda teacher: Paired(model, teacher)
    with torch.no_grad():
        real = torch.cat([model(torch.tensor(pixels)) for pixels, _ in batches(images.about(2000), 250)])
    return lambda teacher: Energy(model, teacher, real)

"""What a fitted table is to come near to, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep.calibration.endtoend import Energy, Loss, pixels
from fewstep.calibration.features import FITTING, feature_network
from fewstep.calibration.teacher import Teacher
from fewstep.data import batches, open_images
from fewstep.progress import Track, silent

__all__ = ["loss_toward"]


def loss_toward(toward: str, data: str | None, *, track: Track = silent) -> Callable[[Teacher], Loss]:
    """pixels, or real: images of `data`, as for open_images, in a classifier of them.

    Raises ValueError for another word, or where images are missing.
    """
    if toward == "pixels":
        return lambda _: pixels
    if toward != "real":
        raise ValueError(f"a table is fitted toward pixels or real, got {toward!r}")
    if data is None:
        raise ValueError("toward real needs images; name them with --data, or fit toward pixels")
    images = open_images(data)
    model = feature_network("classifier", images, seed=FITTING, track=track)
    with torch.no_grad():
        real = torch.cat([model(torch.tensor(pixels)) for pixels, _ in batches(images.about(2000), 250)])
    return lambda teacher: Energy(model, teacher, real)

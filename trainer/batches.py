"""Real images as training takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.data import Images
from fewstep.trainer.draws import Draws

__all__ = ["real_batch"]


def real_batch(images: Images, draws: Draws) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Random images in [low, high], (B, C, H, W), and their labels (B,), where they have classes."""
    index = draws.integers(len(images))
    pixels, labels = images[np.asarray(index.cpu())]
    low, high = images.image.low, images.image.high
    x0 = low + torch.as_tensor(pixels).to(draws.device, torch.float32) * ((high - low) / 255)
    return x0, (torch.as_tensor(labels).to(draws.device),) if images.condition.kind == "labels" else ()

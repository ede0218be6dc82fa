"""A network of a bundle that makes images with any plan, in torch: what fits and searches try plans on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.inputs import Inputs, draw
from fewstep.models.decoder import load_decoder, to_bytes
from fewstep.models.denoiser import load_network
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan, sample
from fewstep.system.processes import keep_to_own_cores
from fewstep.system.progress import Track, silent

__all__ = ["Teacher"]


class Teacher:
    """The network `name` of a bundle, frozen, on a device; `batch` samples at a time.

    Raises ValueError when the bundle has no such network.
    """

    def __init__(self, bundle: Bundle, name: str = "teacher", *, batch: int = 100, device: str | torch.device = "cpu") -> None:
        keep_to_own_cores()
        self.manifest, self.batch, self.device = bundle.manifest, batch, torch.device(device)
        self.denoiser = load_network(bundle, name).requires_grad_(False).to(self.device)
        self.decoder = load_decoder(bundle).requires_grad_(False).to(self.device) if bundle.manifest.latent else None

    def draw(
        self,
        samples: int,
        *,
        seed: int,
        draws: int = 1,
        labels: npt.NDArray[np.int64] | None = None,
        embeddings: Mapping[str, Tensor] | None = None,
    ) -> Inputs:
        """Noise and conditions, see fewstep.calibration.inputs.draw. labels: (samples,), instead of every one in turn."""
        inputs = draw(self.manifest, samples, draws=draws, seed=seed, embeddings=embeddings)
        if labels is None or self.manifest.condition.kind != "labels":
            return inputs
        return replace(inputs, condition=(torch.tensor(labels),))

    def sample(self, plan: Plan, inputs: Inputs, *, track: Track = silent) -> Tensor:
        """The plan's last states, (n, C, H, W) on the host."""
        starts, made = range(0, len(inputs), self.batch), []
        with torch.no_grad():
            for i in track(range(len(starts)), "sample"):
                some = inputs[starts[i] : starts[i] + self.batch].to(self.device)
                denoise = guided(self.denoiser, some.condition, some.null)
                x = plan.begin(some.noise[:, 0])
                made.append(sample(denoise, x, plan, list(some.noise[:, 1:].unbind(1))).cpu())
        return torch.cat(made)

    def images(self, plan: Plan, inputs: Inputs, *, track: Track = silent) -> npt.NDArray[np.uint8]:
        """What the bundle's graphs make of the same, (n, C, H, W) uint8."""
        return self.rounded(self.sample(plan, inputs, track=track))

    def rounded(self, states: Tensor) -> npt.NDArray[np.uint8]:
        """Last states as images (n, C, H, W) uint8, as the bundle's graphs round them."""
        with torch.no_grad():
            parts = [self.bytes(part.to(self.device)).round().to(torch.uint8).cpu() for part in torch.split(states, self.batch)]
        return torch.cat(parts).numpy()

    def bytes(self, states: Tensor) -> Tensor:
        """Last states as images (B, C, H, W) in 0 .. 255, not rounded, so that gradients pass."""
        return to_bytes(states, self.manifest.image, self.decoder)

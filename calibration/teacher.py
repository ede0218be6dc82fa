"""A network of a bundle that makes samples with any plan, in torch: what fits and searches try plans on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.inputs import Drawn, draw
from fewstep.data.conditions import Conditions
from fewstep.data.inputs import Arrays
from fewstep.models.decoder import in_units, load_decoder
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
        self.decoder = load_decoder(bundle).requires_grad_(False).to(self.device) if bundle.manifest.decoder else None

    def draw(
        self,
        samples: int,
        *,
        seed: int,
        draws: int = 1,
        labels: npt.NDArray[np.int64] | None = None,
        arrays: Arrays | None = None,
    ) -> Drawn:
        """Noise and conditions, see fewstep.calibration.inputs.draw.

        Args:
            samples: how many.
            seed: of the noise.
            draws: noise tensors of each.
            labels: classes, or rows of arrays, (samples,), instead of every one in turn.
            arrays: by the names of inputs, (N, ...).

        Raises:
            ValueError: where arrays are needed and missing, or have other names or shapes.
        """
        inputs = draw(self.manifest, samples, draws=draws, seed=seed, arrays=arrays)
        if labels is None:
            return inputs
        return replace(inputs, condition=Conditions(self.manifest.signature.inputs, arrays).of(torch.tensor(labels)))

    def sample(self, plan: Plan, inputs: Drawn, *, track: Track = silent) -> Tensor:
        """The plan's last states, (n, C, ...) on the host.

        Args:
            plan: for this network.
            inputs: n of them, with as much noise as the plan draws.
            track: shows progress.
        """
        starts, made = range(0, len(inputs), self.batch), []
        with torch.no_grad():
            for i in track(range(len(starts)), "sample"):
                some = inputs[starts[i] : starts[i] + self.batch].to(self.device)
                denoise = guided(self.denoiser, some.condition, some.null)
                x = plan.begin(some.noise[:, 0])
                made.append(sample(denoise, x, plan, list(some.noise[:, 1:].unbind(1))).cpu())
        return torch.cat(made)

    def outputs(self, plan: Plan, inputs: Drawn, *, track: Track = silent) -> npt.NDArray[Any]:
        """What the bundle's graphs make of the same, channels first: images (n, C, H, W) uint8, values (n, columns, *axes).

        Args:
            plan, inputs, track: as for `sample`.
        """
        return self.rounded(self.sample(plan, inputs, track=track))

    def rounded(self, states: Tensor) -> npt.NDArray[Any]:
        """Last states as outputs with channels first, images rounded as the bundle's graphs round them."""
        with torch.no_grad():
            made = torch.cat([self.in_units(part.to(self.device)).cpu() for part in torch.split(states, self.batch)])
        dtype = self.manifest.output.tensor.dtype
        return (made.round() if dtype == "uint8" else made).numpy().astype(dtype)

    def in_units(self, states: Tensor) -> Tensor:
        """Last states as outputs with channels first, not rounded, so that gradients pass."""
        return in_units(states, self.manifest.output, self.decoder)

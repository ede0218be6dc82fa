"""Walking a plan from outside: one call of a step graph for every row, with the state in numpy between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fewstep.parametrisation import Scales
from fewstep.plan import Plan, trajectory

__all__ = ["Walker"]

Condition = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Walker:
    """A plan, how its network's output becomes an estimate, and the two graphs of the step layout."""

    plan: Plan
    scales: Callable[[float], Scales]
    step: ort.InferenceSession
    finish: ort.InferenceSession

    def walk(self, noise: npt.NDArray[np.float32], condition: Condition) -> npt.NDArray[np.uint8]:
        """Images uint8 (B, H, W, C) from noise (B, draws, C, H, W) and the condition's tensors by name."""
        inputs = {given.name for given in self.step.get_inputs()}
        # A step graph takes what guidance needs even where this plan has none.
        feeds = {
            name: condition.get(name, condition.get(name.removeprefix("null_"))) for name in inputs - {"x", "scales", "weight"}
        }

        def denoise(x: npt.NDArray[np.float32], sigma: float, weight: float = 1.0) -> npt.NDArray[np.float32]:
            numbers = {"scales": np.array(self.scales(sigma), np.float32), "weight": np.array(weight, np.float32)}
            given = {name: value for name, value in numbers.items() if name in inputs}
            denoised: npt.NDArray[np.float32] = self.step.run(["denoised"], {"x": x} | given | feeds)[0]
            return denoised

        x = np.float32(self.plan.sigmas[0]) * noise[:, 0]
        for made in trajectory(denoise, x, self.plan, list(noise[:, 1:].swapaxes(0, 1))):
            x = made.x
        images: npt.NDArray[np.uint8] = self.finish.run(["images"], {"x": x})[0]
        return images

"""Sequences of vectors whose distribution is known: a mixture of two Gaussian processes, shifted by what is observed.

The best denoiser and its score have closed forms, so whatever is trained, fitted, distilled or exported on it can be evaluated
against the truth instead of against samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewstep import ArrayInput, ArrayOutput, Edm, State

__all__ = ["OBSERVED", "STEPS", "Exact", "denoised", "draw", "write"]

STEPS, COLUMNS, OBSERVED = 8, 2, 2
ABOUT = """{"axes": [{"name": "time", "unit": "0.1 s"}],
 "columns": [{"name": "x", "unit": "m"}, {"name": "y", "unit": "m"}], "null": {"observation": "zeros"}}
"""
TIMES = np.linspace(0, 1, STEPS)
Array = npt.NDArray[np.float64]


def means(observation: Array) -> Array:
    """Of both components, (2, n, STEPS, COLUMNS): a line to what is observed, bent to either side."""
    line = observation[:, None, :] * TIMES[:, None]
    bend = np.stack([np.sin(np.pi * TIMES), np.zeros(STEPS)], -1)
    return np.stack([line + bend, line - bend]) * [5.0, 0.5] + [0.0, 20.0]


def covariance() -> Array:
    """Of every component and column, (STEPS, STEPS), before units: smooth, with a little of its own at every time."""
    apart = TIMES[:, None] - TIMES
    return 0.04 * np.exp(-(apart**2) / 0.08) + 0.002 * np.eye(STEPS)


UNITS = np.array([5.0, 0.5])


def draw(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Samples (count, STEPS, COLUMNS) and what was observed (count, OBSERVED)."""
    rng = np.random.default_rng(seed)
    observation = rng.uniform(-1, 1, (count, OBSERVED))
    chosen = means(observation)[rng.integers(2, size=count), np.arange(count)]
    noise = np.einsum("ts,nsc->ntc", np.linalg.cholesky(covariance()), rng.standard_normal((count, STEPS, COLUMNS)))
    return (chosen + noise * UNITS).astype(np.float32), observation.astype(np.float32)


def write(path: Path, count: int, seed: int) -> Path:
    """As `fewstep train --data` reads them."""
    values, observation = draw(count, seed)
    np.savez(path, values=values, observation=observation)
    path.with_suffix(".json").write_text(ABOUT)
    return path


def denoised(x: Tensor, sigma: Tensor, observation: Tensor, output: ArrayOutput) -> Tensor:
    """E[x0 | x0 + sigma noise = x, observation], all in the units of a bundle's states (B, COLUMNS, STEPS); sigma (B,)."""
    mean, std = (np.array([getattr(column, key) for column in output.columns]) for key in ("mean", "std"))
    centers = (means(observation.double().numpy()) - mean) / std
    centers = torch.from_numpy(np.moveaxis(centers, -1, 2))  # (2, B, COLUMNS, STEPS)
    spread = torch.from_numpy(covariance()[None] * ((UNITS / std) ** 2)[:, None, None])  # (COLUMNS, STEPS, STEPS)
    noisy = spread + sigma.double().square().reshape(-1, 1, 1, 1) * torch.eye(STEPS, dtype=torch.float64)
    off = x.double() - centers
    solved = torch.linalg.solve(noisy[None], off.unsqueeze(-1)).squeeze(-1)
    weights = torch.softmax(-0.5 * (off * solved).sum((2, 3)), 0)[..., None, None]  # both have the same determinant
    return (weights * (centers + (spread @ solved.unsqueeze(-1)).squeeze(-1))).sum(0).to(x.dtype)


class Exact(nn.Module):
    """The network whose denoiser is the closed form, as any torch module: EDM's F, of log-sum-exp of two Gaussians."""

    def __init__(self, output: ArrayOutput, parametrisation: Edm) -> None:
        super().__init__()
        self.sigma_data, self.time_scale = parametrisation.sigma_data, parametrisation.time_scale
        mean, std = (np.array([getattr(column, key) for column in output.columns]) for key in ("mean", "std"))
        values, vectors = np.linalg.eigh(covariance())
        self.register_buffer("values", torch.tensor(values[None] * ((UNITS / std) ** 2)[:, None]))
        self.register_buffer("vectors", torch.tensor(vectors))
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        base = np.moveaxis((means(corners) - mean) / std, -1, 2)  # affine in the observation: three points say it
        self.register_buffer("base", torch.tensor(base[:, 0]))
        self.register_buffer("slopes", torch.tensor(base[:, 1:] - base[:, :1]))

    def forward(self, x: Tensor, timestep: Tensor, observation: Tensor) -> Tensor:
        """F(c_in x, time_scale ln(sigma), observation), (B, COLUMNS, STEPS)."""
        sigma = torch.exp(timestep.double() / self.time_scale).reshape(-1, 1, 1)
        data = self.sigma_data
        root = (sigma**2 + data**2).sqrt()
        state = x.double() * root
        centers = self.base[:, None] + (observation.double()[None, :, :, None, None] * self.slopes[:, None]).sum(2)
        turned = (state - centers) @ self.vectors
        scaled = turned / (self.values + sigma**2)
        weights = torch.softmax(-0.5 * (turned * scaled).sum((2, 3)), 0)[..., None, None]
        estimate = (weights * (centers + (self.values * scaled) @ self.vectors.T)).sum(0)
        skip, out = data**2 / root**2, sigma * data / root
        return ((estimate - skip * state) / out).to(x.dtype)


INPUTS = [ArrayInput(name="observation", shape=(OBSERVED,), null="zeros")]
WALKED = State(channels=COLUMNS, axes=(STEPS,))

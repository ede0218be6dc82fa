"""What a network predicts: D(x, sigma) = skip x + out F(into x, timestep) for a state x = alpha x0 + sigma n.

Each parametrisation knows its own coordinates, that is the alpha that belongs to a sigma: EDM alpha = 1; eps and v (VP)
alpha^2 + sigma^2 = 1; flow alpha = 1 - t, sigma = t. Plans for a network live in these. They are also what a manifest says
of a network, so that whoever walks a plan without torch finds the numbers here.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from fewstep.sampling.plan import Floats
from fewstep.sampling.schedule import (
    Grid,
    cosine_betas,
    flow,
    karras,
    linear_betas,
    to_edm,
    to_flow,
    to_vp,
    vp,
    zero_terminal_snr,
)
from fewstep.system.strict import Strict

__all__ = ["Betas", "Edm", "Eps", "Flow", "Parametrisation", "Scales", "Velocity"]

PURE_NOISE = 2.0**-24  # what abar counts as there, as in diffusers: the smallest number above 0 that half precision has
Level: TypeAlias = Any  # one float, exact in float64, or a torch Tensor of noise levels (B,); torch itself is not needed here


class Scales(NamedTuple):
    """D = skip x + out F(into x, timestep); floats for a float sigma, else floats or tensors like sigma.

    Args:
        skip, out, into: factors of the state, of the network's output and of its input.
        timestep: what the network is told of the noise level.
    """

    skip: Any
    out: Any
    into: Any
    timestep: Any

    def told(self, timestep: float | None = None) -> Scales:
        """With another timestep, where a plan has its own."""
        return self if timestep is None else self._replace(timestep=timestep)


class _Frozen(Strict):
    model_config = ConfigDict(frozen=True)


class Betas(_Frozen):
    """The discrete noise schedule that a VP network was trained on.

    linear: DDPM; scaled_linear: Stable Diffusion; squaredcos_cap_v2: improved DDPM, which start and end do not change; trained:
    the numbers in `trained`. zero_snr: moved so that the last level is pure noise. Lin et al. 2023, arXiv 2305.08891, alg. 1.
    """

    kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained"] = "linear"
    start: float = Field(default=1e-4, gt=0, lt=1)
    end: float = Field(default=0.02, gt=0, lt=1)
    steps: int = Field(default=1000, ge=2, le=100_000)
    trained: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), max_length=100_000)
    zero_snr: bool = False

    @model_validator(mode="after")
    def _is_a_schedule(self) -> Betas:
        if len(self.trained) != (self.steps if self.kind == "trained" else 0):
            raise ValueError(
                f"trained betas are as many as steps ({self.steps}), and of that kind alone; got {len(self.trained)}"
            )
        return self

    def signal(self) -> Floats:
        """abar_t, (steps,), decreasing; read-only."""
        return _signal(self)

    def timestep(self, sigma: Level, alpha: Level) -> Level:
        """The index t, between whole numbers where need be, at which training had this level; ends hold beyond the table.

        Args:
            sigma, alpha: both floats, or both tensors (B,).

        Returns:
            A float for a float sigma, otherwise a tensor (B,).
        """
        logs = self._logs()
        if isinstance(sigma, float | int):
            level = math.log(sigma / alpha) if alpha else math.inf
            return float(np.interp(level, logs, np.arange(logs.size)))
        table, level = sigma.new_tensor(logs), (sigma / alpha).log()
        upper = (level[..., None] >= table).sum(-1).clamp(1, logs.size - 1)
        lower = upper - 1
        return lower + ((level - table[lower]) / (table[upper] - table[lower])).clamp(0, 1)

    def at(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma of an index t, which may lie between two; ends hold beyond the table."""
        signal = self.signal()
        if timestep >= self.steps - 1:  # pure noise has alpha 0, which no logarithm says
            return float(signal[-1] ** 0.5), float((1 - signal[-1]) ** 0.5)
        level = math.exp(np.interp(timestep, np.arange(signal.size), self._logs()))
        return (1 + level**2) ** -0.5, level * (1 + level**2) ** -0.5

    def _logs(self) -> Floats:
        """ln(sigma / alpha), (steps,), increasing; of pure noise, a finite number beyond all others."""
        signal = self.signal().copy()
        signal[-1] = max(signal[-1], min(PURE_NOISE, signal[-2] / 2))
        logs: Floats = np.log((1 - signal) / signal) / 2
        return logs


@lru_cache(maxsize=8)
def _signal(betas: Betas) -> Floats:
    if betas.kind == "trained":
        numbers: Floats = np.array(betas.trained)
    elif betas.kind == "squaredcos_cap_v2":
        numbers = cosine_betas(betas.steps)
    else:
        numbers = linear_betas(betas.steps, betas.start, betas.end, scaled=betas.kind == "scaled_linear")
    signal: Floats = np.cumprod(1 - numbers, dtype=np.float64)
    signal = zero_terminal_snr(signal) if betas.zero_snr else signal
    signal.setflags(write=False)
    return signal


class Edm(_Frozen):
    """EDM preconditioning. Karras et al. 2022, table 1.

    The timestep is time_scale ln sigma: a quarter of it in the paper, 250 (the same in thousandths) in diffusers' UNet2DModel
    checkpoints of consistency models, whose embeddings expect hundreds.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(ge=1e-6, le=1e6)
    time_scale: float = Field(default=250.0, gt=0, le=1e6)

    def alpha(self, sigma: Level) -> Level:  # noqa: ARG002 (one signature for all)
        """1 for every sigma."""
        return 1.0

    def at(self, level: Level) -> tuple[Level, Level]:
        """alpha and sigma of a noise level sigma / alpha."""
        return level / level, level

    def at_timestep(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma of what the network is told."""
        return 1.0, math.exp(timestep / self.time_scale)

    def coordinates(self, grid: Grid) -> Grid:
        """A grid in EDM coordinates. Raises ValueError where it starts from pure noise."""
        return to_edm(grid)

    def grid(self, n: int) -> Grid:
        """The Karras levels from 80 to 0.002."""
        return karras(n, 0.002, 80.0)

    def scales(self, sigma: Level) -> Scales:
        """Raises ValueError for a float sigma that is not positive."""
        _check_level(sigma, math.inf, "an EDM network needs 0 < sigma")
        variance = sigma**2 + self.sigma_data**2
        log = math.log(sigma) if isinstance(sigma, float | int) else sigma.log()
        return Scales(
            self.sigma_data**2 / variance, sigma * self.sigma_data / variance**0.5, variance**-0.5, self.time_scale * log
        )


class _Vp(_Frozen):
    betas: Betas = Betas()

    def alpha(self, sigma: Level) -> Level:
        """sqrt(1 - sigma^2), 0 where sigma > 1."""
        square = (1 - sigma) * (1 + sigma)  # exact near 1, where 1 - sigma^2 would lose the digits
        return max(square, 0.0) ** 0.5 if isinstance(sigma, float | int) else square.clamp(min=0).sqrt()

    def at(self, level: Level) -> tuple[Level, Level]:
        """alpha and sigma of a noise level sigma / alpha."""
        norm = (1 + level**2) ** 0.5
        return 1 / norm, level / norm

    def at_timestep(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma of what the network is told."""
        return self.betas.at(timestep)

    def coordinates(self, grid: Grid) -> Grid:
        """A grid in VP coordinates."""
        return to_vp(grid)

    def grid(self, n: int) -> Grid:
        """n of the levels of training, evenly spaced and including the noisiest."""
        return vp(n, self.betas.signal())


class Eps(_Vp):
    """The network estimates the noise: D = (x - sigma eps) / alpha. Ho et al. 2020, eq. 15."""

    kind: Literal["eps"] = "eps"

    def scales(self, sigma: Level) -> Scales:
        """Raises ValueError for a float sigma outside 0 < sigma < 1."""
        if isinstance(sigma, float | int) and sigma == 1:
            raise ValueError("pure noise (alpha = 0, sigma = 1) tells a network of eps nothing of x0; start the plan below it")
        _check_level(sigma, 1.0, "a network of eps lives in VP coordinates and needs 0 < sigma < 1")
        alpha = self.alpha(sigma)
        return Scales(1 / alpha, -sigma / alpha, 1.0, self.betas.timestep(sigma, alpha))


class Velocity(_Vp):
    """The network estimates v = alpha n - sigma x0: D = alpha x - sigma v. Salimans and Ho 2022, appendix D."""

    kind: Literal["v"] = "v"

    def scales(self, sigma: Level) -> Scales:
        """Raises ValueError for a float sigma outside 0 < sigma <= 1."""
        _check_level(sigma, 1.0, "a network of v lives in VP coordinates and needs 0 < sigma <= 1")
        alpha = self.alpha(sigma)
        return Scales(alpha, -sigma, 1.0, self.betas.timestep(sigma, alpha))


class Flow(_Frozen):
    """The network estimates the velocity n - x0 of a rectified flow: D = x - t v. Esser et al. 2024, section 2.

    The timestep is 1000 t, as diffusers' flow checkpoints take it.
    """

    kind: Literal["flow"] = "flow"
    shift: float = Field(default=1.0, gt=0, le=1e6)

    def alpha(self, sigma: Level) -> Level:
        """1 - sigma."""
        return 1 - sigma

    def at(self, level: Level) -> tuple[Level, Level]:
        """alpha and sigma of a noise level sigma / alpha."""
        return 1 / (1 + level), level / (1 + level)

    def at_timestep(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma of what the network is told."""
        return 1 - timestep / 1000, timestep / 1000

    def coordinates(self, grid: Grid) -> Grid:
        """A grid in flow coordinates."""
        return to_flow(grid)

    def grid(self, n: int) -> Grid:
        """Times from 1 to 0, evenly spaced and then shifted. Esser et al. 2024, eq. 23."""
        return flow(n, self.shift)

    def scales(self, sigma: Level) -> Scales:
        """Raises ValueError for a float sigma outside 0 < sigma <= 1."""
        _check_level(sigma, 1.0, "a flow network needs 0 < sigma <= 1")
        return Scales(1.0, -sigma, 1.0, 1000 * sigma)


Parametrisation: TypeAlias = Annotated[Edm | Eps | Velocity | Flow, Field(discriminator="kind")]


def _check_level(sigma: Level, top: float, rule: str) -> None:
    """Floats are the levels of plans and come from outside; to look into a tensor would make training wait for its device."""
    if isinstance(sigma, float | int) and not 0 < sigma <= top:
        raise ValueError(f"{rule}, got {sigma:g}; bring the plan's grid into the coordinates of its network")

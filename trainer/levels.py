"""Which noise levels training visits, in the coordinates of each parametrisation, and what an error counts there.

A level has a position u in 0 .. 1 on the run's own axis: Karras' spacing of 0.002 .. 80 for EDM, t / T for VP, t for a flow.
The curriculum of the consistency phenomenon (CLTS, arXiv 2404.07946) is stated on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.sampling.parametrisation import Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.trainer.draws import Draws

__all__ = ["Curriculum", "Levels", "Space", "per_sample", "space_of"]

MEAN = 0.3  # of the curriculum's normal, on the axis of positions
FLOW_TOP = 1 - 1e-4  # at t = 1 a flow's state says nothing of the image, and its noise estimate does not exist


def per_sample(numbers: Tensor, samples: Tensor) -> Tensor:
    """One number for each sample, (B,), so that it goes with samples (B, C, ...).

    Args:
        numbers: (B,).
        samples: (B, C, ...); only their rank counts.

    Returns:
        (B, 1, ...).
    """
    return numbers.reshape(-1, *(1,) * (samples.ndim - 1))


class Levels(NamedTuple):
    """Noise levels of a batch, (B,): a state is alpha x0 + sigma noise."""

    alpha: Tensor
    sigma: Tensor

    def noised(self, x0: Tensor, noise: Tensor) -> Tensor:
        """States, (B, C, ...) in the dtype of x0.

        Args:
            x0: samples, (B, C, ...).
            noise: unit normal, like x0.
        """
        alpha, sigma = (per_sample(t, x0) for t in self)
        return (alpha * x0 + sigma * noise).to(x0.dtype)


@dataclass(frozen=True)
class Curriculum:
    """CLTS: positions from (1 - l) base + l N(0.3, std^2), l the share of the run that is done.

    Args:
        std: width of the normal; it is not published.

    Raises:
        ValueError: unless it is above 0 and finite.
    """

    std: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.std < inf:
            raise ValueError(f"the curriculum's normal needs a width above 0 that is finite, got {self.std}")

    def positions(self, uniform: Tensor) -> Tensor:
        """The normal, cut to 0 .. 1, at uniform numbers (B,)."""
        low, high = (0.5 * (1 + torch.erf(torch.tensor((end - MEAN) / (self.std * sqrt(2))))) for end in (0.0, 1.0))
        quantile = low + uniform.double() * (high - low)
        return (MEAN + self.std * sqrt(2) * torch.erfinv(2 * quantile - 1)).clamp(0, 1).to(uniform.dtype)


class Space(ABC):
    """The axis of a parametrisation. scored: positions between which a distillation compares scores."""

    scored: tuple[float, float] = (0.02, 0.98)

    @abstractmethod
    def base(self, draws: Draws) -> Tensor:
        """Positions (B,) that a run without a curriculum visits."""

    @abstractmethod
    def at(self, position: Tensor) -> Levels:
        """The levels at positions (B,)."""

    @abstractmethod
    def position(self, level: Tensor) -> Tensor:
        """Positions of levels sigma / alpha, (B,), or the nearest there are."""

    @abstractmethod
    def lower(self, position: Tensor, skip: int) -> Tensor:
        """Positions `skip` levels of the discretisation lower, (B,); negative where there is none.

        Args:
            position: (B,).
            skip: levels of the discretisation.
        """

    @abstractmethod
    def weight(self, levels: Levels) -> Tensor:
        """What |D - x0|^2 counts, so that the loss is the error of what the network itself estimates, (B,)."""

    def draw(self, draws: Draws, curriculum: Curriculum | None, progress: float) -> Tensor:
        """Positions (B,) for an update.

        Args:
            draws: of the update.
            curriculum: None for the base alone.
            progress: the share of the run that is done, 0 to 1.
        """
        base = self.base(draws)
        if curriculum is None:
            return base
        chosen = draws.uniform() < progress
        return torch.where(chosen, curriculum.positions(draws.uniform()), base)

    def lskip_scale(self, position: Tensor, skip: int) -> Tensor:
        """c of Lskip, c^2 = (1 - a) / a, a = abar_t / abar_s, s the level `skip` lower; 0 where there is none, (B,).

        S2-DMs, arXiv 2401.01520. abar = alpha^2 / (alpha^2 + sigma^2) in any coordinates, so c^2 = (t^2 - s^2) / (1 + s^2)
        for noise levels t and s = sigma / alpha.

        Args:
            position: (B,).
            skip: levels of the discretisation.
        """
        below = self.lower(position, skip)
        upper, under = (levels.sigma / levels.alpha for levels in (self.at(position), self.at(below.clamp(min=0))))
        square = (upper**2 - under**2) / (1 + under**2)
        return torch.where(below >= 0, square.clamp(min=0).sqrt(), 0)

    def lskip_optimum(self, level: Tensor, skip: int, tau: float) -> Tensor:
        """What the noise estimate is multiplied by where Lskip is lowest, s = tau / (tau + (1 - tau) c^2), (B,).

        So a network of the plain loss, scaled by it while it samples, is the control of one that was trained with Lskip.

        Args:
            level: sigma / alpha, (B,).
            skip: levels of the discretisation.
            tau: what the plain loss counts.
        """
        return tau / (tau + (1 - tau) * self.lskip_scale(self.position(level), skip) ** 2)


@dataclass(frozen=True)
class _EdmSpace(Space):
    """ln sigma is normal. Karras et al. 2022, table 1."""

    sigma_data: float
    mean: float
    std: float
    scored = (0.0, 0.8)  # SiD, arXiv 2404.04057, algorithm 1
    steps = 1000  # the discretisation that "skip" counts in
    bottom, top, rho = 0.002 ** (1 / 7), 80.0 ** (1 / 7), 7.0

    def base(self, draws: Draws) -> Tensor:
        # Beyond 0 .. 1 where the normal goes beyond Karras' ends.
        return self.position((self.mean + self.std * draws.normal()).exp())

    def at(self, position: Tensor) -> Levels:
        sigma: Tensor = (self.bottom + position * (self.top - self.bottom)) ** self.rho
        return Levels(torch.ones_like(sigma), sigma)

    def position(self, level: Tensor) -> Tensor:
        found: Tensor = (level ** (1 / self.rho) - self.bottom) / (self.top - self.bottom)
        return found

    def lower(self, position: Tensor, skip: int) -> Tensor:
        return position - skip / (self.steps - 1)

    def weight(self, levels: Levels) -> Tensor:
        return (levels.sigma**2 + self.sigma_data**2) / (levels.sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class _VpSpace(Space):
    """t is one of the whole numbers of the table, all alike. Ho et al. 2020, algorithm 1."""

    parametrisation: Eps | Velocity

    @property
    def steps(self) -> int:
        return self.parametrisation.betas.steps

    def base(self, draws: Draws) -> Tensor:
        return draws.integers(self.steps).double() / (self.steps - 1)

    def at(self, position: Tensor) -> Levels:
        # float64: at the noisy end float32 no longer tells neighbouring levels apart.
        signal = torch.tensor(self.parametrisation.betas.signal(), device=position.device)
        found = signal[(position * (self.steps - 1)).round().long()]
        return Levels(found.sqrt(), (1 - found).sqrt())

    def position(self, level: Tensor) -> Tensor:
        signal = torch.tensor(self.parametrisation.betas.signal(), device=level.device)
        table = ((1 - signal) / signal).sqrt().log()
        nearest = (level.double().log()[:, None] - table).abs().argmin(1)
        return nearest.double() / (self.steps - 1)

    def lower(self, position: Tensor, skip: int) -> Tensor:
        return ((position * (self.steps - 1)).round() - skip) / (self.steps - 1)

    def weight(self, levels: Levels) -> Tensor:
        noise = torch.ones_like(levels.sigma) if isinstance(self.parametrisation, Velocity) else levels.alpha**2
        return noise / levels.sigma**2


@dataclass(frozen=True)
class _FlowSpace(Space):
    """ln(t / (1 - t)) is normal. Esser et al. 2024, section 3.1."""

    mean: float
    std: float
    steps = 1000

    def base(self, draws: Draws) -> Tensor:
        return torch.sigmoid(self.mean + self.std * draws.normal())

    def at(self, position: Tensor) -> Levels:
        sigma = position.clamp(1e-5, FLOW_TOP)
        return Levels(1 - sigma, sigma)

    def position(self, level: Tensor) -> Tensor:
        return level / (1 + level)

    def lower(self, position: Tensor, skip: int) -> Tensor:
        return position - skip / self.steps

    def weight(self, levels: Levels) -> Tensor:
        return levels.sigma**-2


def space_of(parametrisation: Parametrisation, *, mean: float, std: float) -> Space:
    """The axis of a parametrisation.

    Args:
        parametrisation: of the network that is trained.
        mean, std: of ln(sigma / alpha), where the base draws it from a normal; a VP network's does not.
    """
    match parametrisation:
        case Edm():
            return _EdmSpace(parametrisation.sigma_data, mean, std)
        case Flow():
            return _FlowSpace(mean, std)
        case _:
            return _VpSpace(parametrisation)

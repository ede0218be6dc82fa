"""Settings of a distillation, and where its generator evaluates the network."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm, Flow, Parametrisation
from fewstep.sampling.schedule import Grid, flow, uniform
from fewstep.trainer.run import RunConfig
from fewstep.trainer.scores import Mode, Weights

__all__ = ["SidConfig", "generator_grid"]

VP_START = 0.625  # of the table's times


@dataclass(frozen=True)
class SidConfig(RunConfig):
    """Settings of a distillation; the defaults brought generators of digits to their teacher (benchmarks/sid.py).

    Args:
        iterations: updates of G (and of F).
        steps: K, the network calls per sample.
        lr: None is 6e-4, half that for several steps.
        alpha: of SiD's loss.
        mode, guidance: where F and T are guided and by how much, see fewstep.trainer.scores; the generator then makes guided
            samples in one pass.
        lo, hi: noise levels T is guided above, and up to (None: all higher ones).
        match: every step's output, drawn uniformly, or the final one alone.
        start: the network that G starts as.
        plan: a sampler of the bundle that G walks, such as a fitted table, instead of few steps with noise drawn anew; what it
            ends in alone is matched.
        sigma_start: where the few steps begin, for EDM.
        noise_mean, noise_std: of ln(sigma / alpha) where F learns.
        warmup, adversarial_from: shares of the run in which only F learns, and after which real samples join.
    """

    iterations: int = 800
    halflife_images: float = 2e3
    validate_every: int = 25
    steps: int = 1
    lr: float | None = None
    alpha: float = 1.0
    mode: Mode = "teacher"
    guidance: float = 1.2
    lo: float = 0.0
    hi: float | None = None
    match: Literal["uniform", "final"] = "uniform"
    start: str = "teacher"
    plan: str | None = None
    sigma_start: float = 2.5
    noise_mean: float = -1.2
    noise_std: float = 1.2
    warmup: float = 0.0
    adversarial_from: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= 4:
            raise ValueError(f"SiD generators take 1 to 4 steps, got {self.steps}; use a calibrated solver beyond that")
        if self.match not in ("uniform", "final"):
            raise ValueError(f"a generator matches every output (uniform) or the last (final), got {self.match!r}")
        if not (0 <= self.warmup < 1 and 0 <= self.adversarial_from <= 1):
            raise ValueError(
                f"shares of a run lie in 0 .. 1, got warmup {self.warmup}, adversarial_from {self.adversarial_from}"
            )
        if not isfinite(self.alpha):
            raise ValueError(f"SiD's alpha is a finite number, published 0.5 to 1.2, got {self.alpha}")
        Weights.of(self.mode, self.guidance)
        self.interval()

    def rate(self) -> float:
        """The learning rate."""
        return self.lr if self.lr is not None else 6e-4 if self.steps == 1 else 3e-4

    def interval(self) -> Guidance:
        """How T is guided."""
        return Guidance.of({"scale": Weights.of(self.mode, self.guidance).teacher, "lo": self.lo, "hi": self.hi})


def generator_grid(parametrisation: Parametrisation, steps: int, sigma_start: float = 2.5) -> Grid:
    """Where a generator of K steps evaluates its network, k = 0 .. K - 1, and clean data.

    sigma_start (K - k) / K for EDM, the time 0.625 T (K - k) / K of the VP table, (K - k) / K for a flow.
    """
    if isinstance(parametrisation, Edm):
        return uniform(steps, sigma_start)
    if isinstance(parametrisation, Flow):
        return flow(steps)
    signal = parametrisation.betas.signal()
    times = (VP_START * signal.size * (1 - np.arange(steps) / steps)).astype(int)
    abar = np.append(signal[times], 1.0)
    return Grid(np.sqrt(abar), np.sqrt(1 - abar))

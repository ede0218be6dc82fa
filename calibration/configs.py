"""Settings of fits and searches. Nothing here needs torch, so that the command line knows them at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from fewstep.calibration.methods import METHODS
from fewstep.sampling.guidance import Guidance

__all__ = ["FitConfig", "IntervalConfig", "TableConfig"]


@dataclass(frozen=True)
class GuidedConfig:
    """Settings of every fit.

    Args:
        steps: of the solver; for a table network calls, beside those of guided steps.
        guidance: scale of the plan; 1 is none.
        lo: noise level above which steps are guided.
        hi: noise level up to which steps are guided; all higher ones unless given.
        samples: noise and condition pairs to fit on; toward real samples, conditions alone, and noise is drawn anew.
        batch: samples that the network takes at once.
        seed: of everything that is drawn.
    """

    steps: int = 4
    guidance: float = 1.0
    lo: float = 0.0
    hi: float | None = None
    samples: int = 128
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"a fit needs {name} of 1 or more, got {getattr(self, name)}")
        if self.guidance == 1 and (self.lo, self.hi) != (0.0, None):
            raise ValueError("--lo and --hi need a --guidance")
        self.interval()

    def interval(self) -> Guidance:
        """How the plan is guided."""
        return Guidance(self.guidance, self.lo, inf if self.hi is None else self.hi)


@dataclass(frozen=True)
class FitConfig(GuidedConfig):
    """How to fit a solver step by step.

    Args:
        method: a key of METHODS.
        fine: steps that a fitted one should land on.
    """

    method: str = "iia-ddim"
    fine: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"a method is one of table, {', '.join(METHODS)}, got {self.method!r}")
        if self.steps < 2:
            raise ValueError(f"IIA corrects a step by the one before it and needs at least 2 steps, got {self.steps}")
        if self.fine < 1:
            raise ValueError(f"a fit needs fine of 1 or more, got {self.fine}")


@dataclass(frozen=True)
class TableConfig(GuidedConfig):
    """How to fit a table as a whole.

    Args:
        method: table, which is fitted as a whole, or a solver that is fitted step by step, such as iia-ddim.
        iterations: updates of its numbers.
        unseen: pairs that decide.
        lr: learning rate of its numbers.
    """

    method: Literal["table"] = "table"
    iterations: int = 100
    unseen: int = 128
    lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "iterations", "unseen"):
            if getattr(self, name) < 1:
                raise ValueError(f"a table needs {name} of 1 or more, got {getattr(self, name)}")
        if not 0 <= self.lr < inf:
            raise ValueError(f"a learning rate is 0 or more and finite, got {self.lr}")


@dataclass(frozen=True)
class IntervalConfig:
    """How to search.

    Args:
        steps: of the solver.
        guidance: guidance scales of the sweep, such as 1.5,2,3; the search draws from 1 up to the largest.
        recipe: sweep, where to begin, then where to end, as published; or search, by optuna.
        trials: of the search.
        calls: network calls at most, of the plan that is taken.
        seed: of everything that is drawn.
    """

    steps: int = 10
    guidance: tuple[float, ...] = (1.5, 2.0, 3.0)
    recipe: Literal["sweep", "search"] = "sweep"
    trials: int = 60
    calls: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in ("sweep", "search"):
            raise ValueError(f"an interval is found by sweep or search, got {self.recipe!r}")
        if not self.guidance or not all(1 < scale < inf for scale in self.guidance):
            raise ValueError(f"guidance begins above the scale 1, got the scales {list(self.guidance)}")
        if self.trials < 1:
            raise ValueError(f"a search needs 1 trial or more, got {self.trials}")

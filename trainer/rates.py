"""Learning rate and momentum of an update, from its number alone, so that resuming is exact."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

__all__ = ["Rates", "Schedule", "rates", "refuse_rate"]

# linear: the rate falls to 0. constant: it stays. momentum-decay: MDLRC of arXiv 2404.07946, Adam's first momentum falls and
# the rate with it, so that what an update adds in the long run stays the same. compensation-only: its control, the rate alone.
Schedule: TypeAlias = Literal["linear", "constant", "momentum-decay", "compensation-only"]
MOMENTUM = 0.9


class Rates(NamedTuple):
    """Factor of the peak learning rate, and Adam's beta1."""

    lr: float
    beta1: float


def refuse_rate(lr: float) -> None:
    """Raises ValueError for what is no learning rate."""
    if not lr >= 0:  # also where it is not a number
        raise ValueError(f"a learning rate is 0 or more, got {lr}")


def rates(schedule: Schedule, step: int, steps: int, warmup: int) -> Rates:
    """Of update number `step`.

    MDLRC with p = step / steps: beta1 = b (1 - p) / ((1 - b) + b (1 - p)), lr = (1 - b) / (1 - beta1) = 1 - b p.

    Args:
        schedule: one of Schedule.
        step: from 0.
        steps: of the run.
        warmup: updates until the peak is reached.

    Raises:
        ValueError: for a schedule there is not.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"a schedule is {', '.join(get_args(Schedule))}, got {schedule!r}")
    progress = step / steps
    left = {"linear": 1 - progress, "constant": 1.0}.get(schedule, 1 - MOMENTUM * progress)
    beta1 = MOMENTUM
    if schedule == "momentum-decay":
        beta1 = MOMENTUM * (1 - progress) / ((1 - MOMENTUM) + MOMENTUM * (1 - progress))
    return Rates(min(1.0, (step + 1) / max(warmup, 1)) * left, beta1)

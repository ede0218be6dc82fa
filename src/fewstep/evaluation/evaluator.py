"""What evaluates a sampler, whatever it makes: outputs against a held-out split of real samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log10
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fewstep.data import Labels

__all__ = ["MAX_PSNR_DB", "Evaluator", "psnr", "refuse_unlike"]

Array = npt.NDArray[Any]
MAX_PSNR_DB = 200.0  # of equal outputs


class Evaluator(ABC):
    """Outputs have channels first: images (n, C, H, W) uint8, values (n, columns, *axes) in their units.

    Args:
        n: how many real samples there are; distances of unequal n do not compare.
        labels: what the i-th real sample was made from, (n,): its class, or a row of arrays.
    """

    metric: ClassVar[Literal["frechet", "energy"]]  # the number that decides, among `scores`; lower is better
    n: int
    labels: Labels

    @abstractmethod
    def scores(self, outputs: Array, labels: Labels | None) -> dict[str, float]:
        """What outputs come to, by name.

        Args:
            outputs: as many as there are real samples, (n, ...).
            labels: classes that were asked for, (n,); None for none, or where they do not count.

        Raises:
            ValueError: for another number than n.
        """

    @abstractmethod
    def pair(self, outputs: Array, reference: Array) -> dict[str, float]:
        """psnr_db and distance of two samplers' outputs from equal noise and inputs.

        Args:
            outputs, reference: (n, ...) each; the distance is counted in those of unrelated outputs of the reference.

        Raises:
            ValueError: for unequal shapes.
        """

    @abstractmethod
    def distance(self, outputs: Array) -> float:
        """The number that decides, alone. Raises ValueError as `scores` does."""

    @abstractmethod
    def digest(self) -> str:
        """One hash for what this evaluates by."""


def psnr(outputs: Array, reference: Array, span: float) -> float:
    """Peak signal to noise ratio in dB, at most MAX_PSNR_DB.

    Args:
        outputs, reference: of one shape.
        span: from the least value to the largest.
    """
    error = float(((outputs.astype(np.float64) - reference) ** 2).mean())
    return min(10 * log10(span**2 / error), MAX_PSNR_DB) if error else MAX_PSNR_DB


def refuse_unlike(outputs: Array, reference: Array) -> None:
    """Raises ValueError for outputs that are no pairs.

    Args:
        outputs, reference: (n, ...) each.
    """
    if outputs.shape != reference.shape:
        raise ValueError(f"pairs are outputs of equal noise, got {outputs.shape} and {reference.shape}")

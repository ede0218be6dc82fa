"""A sampler is a table.

Notation, everywhere in fewstep: a state at row k is x_k = alpha_k x0 + sigma_k noise, D_k is the denoised estimate of x0
made from x_k, and one row costs one guided network evaluation:

    D_k     = denoise(x_k, sigma_k, weight_k)
    x_{k+1} = sum_{j<=k} a[k,j] x_j + sum_{j<=k} b[k,j] D_j + c[k] noise_k

DDIM, Heun, DPM-Solver++, their fitted (IIA) variants and the few-step generators are rows of such numbers. Plans live in
the model's own coordinates: EDM alpha = 1; VP alpha^2 + sigma^2 = 1; flow alpha = 1 - t, sigma = t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Denoise", "Floats", "Plan", "Step", "advance", "sample", "trajectory"]

MAX_SIGMA = 1e9  # its square is a number still

Floats: TypeAlias = npt.NDArray[np.float64]
Array: TypeAlias = Any  # numpy, torch, or the exporter's symbols: whatever adds and scales
Denoise: TypeAlias = Callable[..., Array]  # denoise(x, sigma), and denoise(x, sigma, weight) on rows with guidance


@dataclass(frozen=True, eq=False)
class Plan:
    """The numbers of one sampler with n rows.

    alphas, sigmas (n + 1,): coordinates of x_0 .. x_n. a, b (n, n): lower-triangular weights of states and estimates.
    c (n,): fresh noise added by a row. weights (n,): guidance weight; 1 means the unconditional pass does not exist.

    Raises ValueError where a shape, a sign or the triangular form is wrong.
    """

    alphas: Floats
    sigmas: Floats
    a: Floats
    b: Floats
    c: Floats
    weights: Floats

    def __post_init__(self) -> None:
        for name in ("alphas", "sigmas", "a", "b", "c", "weights"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        n = self.c.size
        shapes = {"alphas": (n + 1,), "sigmas": (n + 1,), "a": (n, n), "b": (n, n), "c": (n,), "weights": (n,)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if n == 0 or values.shape != shape:
                raise ValueError(f"a plan of {n} rows (at least 1) needs {name} of shape {shape}, got {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"a plan holds finite numbers only, {name} has {values[~np.isfinite(values)][0]}")
        for name in ("a", "b"):
            row, column = (int(i[0]) if i.size else -1 for i in np.nonzero(np.triu(getattr(self, name), 1)))
            if row >= 0:
                raise ValueError(
                    f"a plan is lower-triangular: row {row} may use states and estimates 0..{row}, "
                    f"but {name}[{row},{column}] = {getattr(self, name)[row, column]:g}; set it to 0"
                )
        if (self.alphas < 0).any() or (self.sigmas < 0).any() or (self.sigmas[:-1] == 0).any():
            raise ValueError("a plan needs alphas >= 0 and sigmas > 0 (the last sigma may be 0)")
        if (self.sigmas > MAX_SIGMA).any():
            raise ValueError(f"a plan's sigmas are at most {MAX_SIGMA:g}, got {self.sigmas.max():g}")
        if not (self.a.any(1) | self.b.any(1)).all():
            raise ValueError("every row of a plan needs at least one nonzero coefficient in a or b")

    @property
    def rows(self) -> int:
        return self.c.size

    @property
    def nfe(self) -> int:
        """Network evaluations for one image: one per row and one more where guidance is on."""
        return self.rows + int(np.count_nonzero(self.weights != 1))

    @property
    def guided(self) -> bool:
        """Whether any row needs what means "no condition"."""
        return bool((self.weights != 1).any())

    @property
    def draws(self) -> int:
        """Noise tensors one image consumes: the start and one for every row that adds noise."""
        return 1 + int(np.count_nonzero(self.c))

    def consistency(self) -> Floats:
        """Error of each row on data that is one point, (n,): sum_j a[k,j] alpha_j + sum_j b[k,j] - alpha_{k+1}.

        Rounding for rows written by a solver; fitted rows report how far the fit moved them.
        """
        error: Floats = self.a @ self.alphas[:-1] + self.b.sum(1) - self.alphas[1:]
        return error


class Step(NamedTuple):
    """What a row did: `denoised` is D_row, `x` the state x_{row+1} it led to."""

    row: int
    x: Array
    denoised: Array


def advance(plan: Plan, k: int, states: Sequence[Array], estimates: Sequence[Array], noise: Array = None) -> Array:
    """x_{k+1} from x_0..x_k and D_0..D_k; terms with a zero coefficient are never formed."""
    pairs = [*zip(plan.a[k], states, strict=False), *zip(plan.b[k], estimates, strict=False), (plan.c[k], noise)]
    # A factor of 1 is left out so that it costs no node in an exported graph.
    return reduce(add, (value if factor == 1 else float(factor) * value for factor, value in pairs if factor))


def trajectory(denoise: Denoise, x: Array, plan: Plan, noise: Sequence[Array] = ()) -> Iterator[Step]:
    """Walk the plan from the state x = sigma_0 * unit noise, (B, C, H, W), yielding every step as it is made.

    noise: one unit-normal array like x for each row with c != 0. States that no later row reads are let go.
    Raises ValueError when the number of noise arrays is not plan.draws - 1.
    """
    if len(noise) != plan.draws - 1:
        raise ValueError(f"this plan adds noise on {plan.draws - 1} rows, got {len(noise)} noise arrays")
    fresh = iter(noise)
    states: list[Array] = [x]
    estimates: list[Array] = []
    for k in range(plan.rows):
        sigma, weight = float(plan.sigmas[k]), float(plan.weights[k])
        estimates.append(denoise(states[k], sigma) if weight == 1 else denoise(states[k], sigma, weight))
        states.append(advance(plan, k, states, estimates, next(fresh) if plan.c[k] else None))
        yield Step(k, states[-1], estimates[-1])
        for j in range(k + 1):
            if not plan.a[k + 1 :, j].any():
                states[j] = None
            if not plan.b[k + 1 :, j].any():
                estimates[j] = None


def sample(denoise: Denoise, x: Array, plan: Plan, noise: Sequence[Array] = ()) -> Array:
    """x_n, the end of the trajectory that starts at x = sigma_0 * unit noise, (B, C, H, W)."""
    for step in trajectory(denoise, x, plan, noise):
        x = step.x
    return x

"""A sampler is a table.

Notation, everywhere in fewstep: a state at row k is x_k = alpha_k x0 + sigma_k noise, D_k is the denoised estimate of x0
made from x_k, and one row costs one guided network evaluation:

    D_k     = denoise(x_k, sigma_k, guidance_k)
    x_{k+1} = sum_{j<=k} a[k,j] x_j + sum_{j<=k} b[k,j] D_j + c[k] noise_k,    x_0 = sigma_0 noise

DDIM, Heun, DPM-Solver++, their fitted (IIA) variants and the few-step generators are rows of such numbers. Plans live in
the model's own coordinates: EDM alpha = 1; VP alpha^2 + sigma^2 = 1; flow alpha = 1 - t, sigma = t.

Three things are there only where a sampler has them, as those of diffusers do (see fewstep.models.tracing):

    start                    x_0 = start noise, where that is not sigma_0
    timesteps[k]             what the network is told in row k, where that does not follow from sigma_k
    clip[k,j], clip_range    x_{k+1} has sum_{j<=k} clip[k,j] clipped(D_j) besides, cut to [-clip_range, clip_range]
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
# denoise(x, sigma), denoise(x, sigma, scale) on rows with guidance, and timestep=... besides where a plan has timesteps
Denoise: TypeAlias = Callable[..., Array]


@dataclass(frozen=True, eq=False)
class Plan:
    """The numbers of one sampler with n rows; start, timesteps and clip are None in the plain case.

    Args:
        alphas, sigmas: (n + 1,), coordinates of x_0 .. x_n.
        a, b: (n, n), lower-triangular weights of states and estimates.
        c: (n,), fresh noise added by a row.
        guidance: (n,), its scale; 1 means the unconditional pass does not exist.
        start: what unit noise is multiplied by, where that is not sigma_0.
        timesteps: (n,), what the network is told, where that does not follow from sigma.
        clip: (n, n), lower-triangular weights of clipped estimates.
        clip_range: estimates are clipped to -clip_range and clip_range.

    Raises:
        ValueError: where a shape, a sign or the triangular form is wrong, or a row has no coefficient.
    """

    alphas: Floats
    sigmas: Floats
    a: Floats
    b: Floats
    c: Floats
    guidance: Floats
    start: float | None = None
    timesteps: Floats | None = None
    clip: Floats | None = None
    clip_range: float | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        for name in ("a", "b", "clip"):
            table = getattr(self, name)
            row, column = (-1, -1) if table is None else (int(i[0]) if i.size else -1 for i in np.nonzero(np.triu(table, 1)))
            if row >= 0:
                raise ValueError(
                    f"a plan is lower-triangular: row {row} may use states and estimates 0..{row}, "
                    f"but {name}[{row},{column}] = {table[row, column]:g}; set it to 0"
                )
        if (self.alphas < 0).any() or (self.sigmas < 0).any() or (self.sigmas[:-1] == 0).any():
            raise ValueError("a plan needs alphas >= 0 and sigmas > 0 (the last sigma may be 0)")
        if (self.sigmas > MAX_SIGMA).any():
            raise ValueError(f"a plan's sigmas are at most {MAX_SIGMA:g}, got {self.sigmas.max():g}")
        if self.start is not None and not 0 < self.start <= MAX_SIGMA:
            raise ValueError(
                f"a plan's start is what unit noise is multiplied by, above 0 and up to {MAX_SIGMA:g}, got {self.start}"
            )
        if (self.clip is None) != (self.clip_range is None) or (
            self.clip_range is not None and not 0 < self.clip_range < np.inf
        ):
            raise ValueError(f"a plan has clip together with a clip_range above 0, got the range {self.clip_range}")
        clipped = np.zeros(self.rows, bool) if self.clip is None else self.clip.any(1)
        if not (self.a.any(1) | self.b.any(1) | clipped).all():
            raise ValueError("every row of a plan needs at least one nonzero coefficient in a or b")

    def _check_shapes(self) -> None:
        """Turn tables into float64 arrays that cannot be written to."""
        n = np.size(self.c)
        shapes = {"alphas": (n + 1,), "sigmas": (n + 1,), "a": (n, n), "b": (n, n), "c": (n,), "guidance": (n,)}
        shapes |= {name: shape for name, shape in (("timesteps", (n,)), ("clip", (n, n))) if getattr(self, name) is not None}
        for name, shape in shapes.items():
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
            if n == 0 or values.shape != shape:
                raise ValueError(f"a plan of {n} rows (at least 1) needs {name} of shape {shape}, got {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"a plan holds finite numbers only, {name} has {values[~np.isfinite(values)][0]}")

    @property
    def rows(self) -> int:
        return self.c.size

    @property
    def nfe(self) -> int:
        """Network evaluations for one image: one per row and one more where guidance is on."""
        return self.rows + int(np.count_nonzero(self.guidance != 1))

    @property
    def guided(self) -> bool:
        """Whether any row needs what means "no condition"."""
        return bool((self.guidance != 1).any())

    @property
    def draws(self) -> int:
        """Noise tensors one image consumes: the start and one for every row that adds noise."""
        return 1 + int(np.count_nonzero(self.c))

    def begin(self, noise: Array) -> Array:
        """x_0, the state that unit noise becomes: the one place that says how a plan starts.

        Args:
            noise: unit normal, (B, C, ...).
        """
        start = float(self.sigmas[0]) if self.start is None else self.start
        return noise if start == 1 else start * noise

    def told(self, row: int) -> dict[str, float]:
        """What a denoiser is called with besides, in a row: the timestep, where the plan has its own."""
        return {} if self.timesteps is None else {"timestep": float(self.timesteps[row])}

    def reads_estimate(self, row: int, since: int) -> bool:
        """Whether D_row stands in a row from `since` on.

        Args:
            row: of the estimate.
            since: the first row that may read it.
        """
        return bool(self.b[since:, row].any()) or (self.clip is not None and bool(self.clip[since:, row].any()))

    def consistency(self) -> Floats:
        """Error of each row on data that is one point, (n,): sum_j a[k,j] alpha_j + sum_j b[k,j] - alpha_{k+1}.

        Rounding for rows written by a solver; fitted rows report how far the fit moved them.
        """
        estimates = self.b if self.clip is None else self.b + self.clip
        error: Floats = self.a @ self.alphas[:-1] + estimates.sum(1) - self.alphas[1:]
        return error


class Step(NamedTuple):
    """What a row did: `denoised` is D_row, `x` the state x_{row+1} it led to."""

    row: int
    x: Array
    denoised: Array


def advance(plan: Plan, k: int, states: Sequence[Array], estimates: Sequence[Array], noise: Array = None) -> Array:
    """x_{k+1} from x_0..x_k and D_0..D_k; terms with a zero coefficient are never formed.

    Args:
        plan: its row k is applied.
        k: the row.
        states: x_0 .. x_k, (B, C, ...) each.
        estimates: D_0 .. D_k, like states.
        noise: unit normal like a state; read only where c[k] is not 0.

    Returns:
        x_{k+1}, like a state.
    """
    pairs = [*zip(plan.a[k], states, strict=False), *zip(plan.b[k], estimates, strict=False), (plan.c[k], noise)]
    if plan.clip is not None and (top := plan.clip_range):
        pairs += [(f, estimates[j].clip(-top, top)) for j, f in enumerate(plan.clip[k, : k + 1]) if f]
    # A factor of 1 is left out so that it costs no node in an exported graph.
    return reduce(add, (value if factor == 1 else float(factor) * value for factor, value in pairs if factor))


def trajectory(denoise: Denoise, x: Array, plan: Plan, noise: Sequence[Array] = ()) -> Iterator[Step]:
    """Walk the plan from the state x = plan.begin(unit noise), (B, C, ...), yielding every step as it is made.

    States and estimates that no later row reads are let go.

    Args:
        denoise: D(x, sigma), or D(x, sigma, scale) on rows with guidance; told timestep=... where the plan has timesteps.
        x: the state x_0.
        plan: the table to walk, in the coordinates of the denoiser.
        noise: one unit-normal array like x for each row with c != 0.

    Yields:
        A step for each row, with x_{row+1} and D_row.

    Raises:
        ValueError: where there are not plan.draws - 1 noise arrays, when the first step is asked for.
    """
    if len(noise) != plan.draws - 1:
        raise ValueError(f"this plan adds noise on {plan.draws - 1} rows, got {len(noise)} noise arrays")
    fresh = iter(noise)
    states: list[Array] = [x]
    estimates: list[Array] = []
    for k in range(plan.rows):
        sigma, scale, told = float(plan.sigmas[k]), float(plan.guidance[k]), plan.told(k)
        estimates.append(denoise(states[k], sigma, **told) if scale == 1 else denoise(states[k], sigma, scale, **told))
        states.append(advance(plan, k, states, estimates, next(fresh) if plan.c[k] else None))
        yield Step(k, states[-1], estimates[-1])
        for j in range(k + 1):
            if not plan.a[k + 1 :, j].any():
                states[j] = None
            if not plan.reads_estimate(j, k + 1):
                estimates[j] = None


def sample(denoise: Denoise, x: Array, plan: Plan, noise: Sequence[Array] = ()) -> Array:
    """x_n, the end of the trajectory that starts at x = plan.begin(unit noise), (B, C, ...).

    Args:
        denoise: D(x, sigma), or D(x, sigma, scale) on rows with guidance; told timestep=... where the plan has timesteps.
        x: the state x_0, of numpy or torch.
        plan: the table to walk, in the coordinates of the denoiser.
        noise: one unit-normal array like x for each row with c != 0.

    Returns:
        The last state, like x.

    Raises:
        ValueError: where there are not plan.draws - 1 noise arrays.
    """
    for step in trajectory(denoise, x, plan, noise):
        x = step.x
    return x

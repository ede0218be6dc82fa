"""Any scheduler of diffusers as a Plan: it is walked with unit vectors in place of images, and its rows are read off.

A scheduler is linear in the noise it starts from, in what the network gives (F_k) and in noise drawn on the way. So the noise
is e_0, each F_k is the next unit vector and each draw one more, and what the scheduler makes of them says, number by number,
what it is. Where it cuts its estimate to a range (clip_sample), what comes out is a unit vector of its own, and what went in
must be D_k = skip_k x_k + out_k F_k (see parametrisation.py). With that, states and estimates span the same vectors.

Needs torch and diffusers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewstep.sampling.guidance import PLAIN, Guidance
from fewstep.sampling.parametrisation import Edm, Flow, Parametrisation
from fewstep.sampling.plan import Floats, Plan, sample

__all__ = ["HandedNoise", "steps_of", "trace"]

PER_ROW = 5  # unit vectors that a row takes at most: F, what a clip makes, noise
SAME = 1e-9  # of the largest number: vectors that differ by less are equal
ROUNDING = 1e-12  # of the largest number in a row of the table: less is none
CLOSE = 1e-4  # of the largest number: what is clipped is the estimate; what the table makes is what the scheduler makes
SNAP = 0.01  # timesteps: a level this near to that of what the network is told is that level
FITS = 0.01  # of the data: what a row may make of data that is one point, beyond rounding and a level that counts as pure noise
INEXACT = ("PNDMScheduler",)  # of v, it adds up outputs for several states as if they were for one
CLEAN = 1e-6  # of alpha: the last state is clean data


class HandedNoise(TorchFunctionMode):
    """While it is active, torch.randn of a shape gives what `noise` gives, and arithmetic stays in the dtype it is in.

    `count` says how many were drawn so far.

    Args:
        shape: with a batch; noise of another batch of that shape is expanded.
        noise: the draw of a number, from 0.
        clip: what is called in place of clamp(x, low, high) on tensors of that shape, where it is given.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        noise: Callable[[int], Tensor],
        clip: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.noise, self.clip, self.count = shape, noise, clip, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("randn", "randn_like"):
            shape = (
                args[0].shape if name == "randn_like" else args[0] if isinstance(args[0], tuple | list | torch.Size) else args
            )
            if tuple(shape)[1:] == self.shape[1:]:  # some pipelines draw for a batch that guidance doubled
                self.count += 1
                return self.noise(self.count - 1).expand(tuple(shape))
        first = args[0] if args else None
        if isinstance(first, Tensor) and tuple(first.shape) == self.shape and first.is_floating_point():
            if name in ("clamp", "clip") and self.clip:
                return self.clip(first, *_bounds(*args[1:], **kwargs))
            if name in ("to", "float", "half", "type"):
                cast = func(*args, **kwargs)
                return cast if cast.dtype == first.dtype else first
        return func(*args, **kwargs)


def _bounds(min: Any = None, max: Any = None) -> tuple[float, float]:
    return float("-inf" if min is None else min), float("inf" if max is None else max)


class _Clip(NamedTuple):
    """A vector that was cut to [-top, top], and which unit vector came out."""

    argument: Floats
    unit: int
    top: float


class _Draw(NamedTuple):
    """Which unit vector a noise tensor is, and the how many-th that the scheduler drew."""

    unit: int
    number: int


@dataclass
class _Traced:
    """What a scheduler did in n steps, in vectors of (N,).

    seen: what the network is given in every row, by which factor it differs from the scheduler's own state, and the timestep;
    outputs: which unit vector F_k is; draws and clips: by row; end: what came out.
    """

    seen: list[Floats] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    draws: list[list[_Draw]] = field(default_factory=list)
    clips: list[list[_Clip]] = field(default_factory=list)
    end: Floats = field(default_factory=lambda: np.zeros(0))


def trace(scheduler: Any, parametrisation: Parametrisation, guidance: Guidance = PLAIN) -> tuple[Plan, list[int]]:
    """The plan of a scheduler whose timesteps are set, and which of its draws of noise the plan's rows use.

    Args:
        scheduler: of diffusers; it is not changed.
        parametrisation: of the network, by the scheduler's prediction_type.
        guidance: by noise level, taken at the level of each row.

    Returns:
        The plan, and one number for each row with noise; 0 is the first draw after the start.

    Raises:
        ValueError: for a scheduler that is not linear, or for levels that the network does not have.
    """
    traced = _walk(copy.deepcopy(scheduler))
    alphas, sigmas, timesteps = _levels(scheduler, traced, parametrisation)
    scales = [parametrisation.scales(float(sigma)) for sigma in sigmas]
    states = [seen / s.into for seen, s in zip(traced.seen, scales, strict=True)]
    units = [_unit(seen.size, output) for seen, output in zip(traced.seen, traced.outputs, strict=True)]
    estimates = [s.skip * state + s.out * unit for s, state, unit in zip(scales, states, units, strict=True)]
    tables = _Tables(states, estimates, traced)
    last = float(tables.a[-1] @ alphas + tables.b[-1].sum() + tables.clip[-1].sum())
    end_alpha, end_sigma = _last_level(parametrisation, last)
    with np.errstate(divide="ignore"):
        levels = sigmas / alphas
    start = float(states[0][0])
    plan = Plan(
        alphas=np.append(alphas, end_alpha),
        sigmas=np.append(sigmas, end_sigma),
        a=tables.a,
        b=tables.b,
        c=tables.c,
        guidance=guidance.at(levels),
        start=None if abs(start - sigmas[0]) <= CLEAN * start else start,
        timesteps=timesteps,
        clip=tables.clip if tables.clip_range else None,
        clip_range=tables.clip_range,
    )
    off = float(np.abs(plan.consistency()).max())
    if off > FITS and type(scheduler).__name__ not in INEXACT:
        raise ValueError(
            f"this {type(scheduler).__name__} walks other levels or estimates than a network of {parametrisation.kind} has "
            f"(data that is one point is {off:.2g} off); its settings say something else than how the network was trained"
        )
    _check(copy.deepcopy(scheduler), replace(plan, guidance=np.ones(plan.rows)), parametrisation, tables.drawn)
    return plan, tables.drawn


def steps_of(scheduler: Any, x: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """The loop of a diffusers pipeline around network(what it is given, timestep): every state, from unit noise x.

    Args:
        scheduler: of diffusers, its timesteps set.
        x: unit noise, (B, C, ...).
        network: F of the scaled state and the timestep, with guidance where there is any.

    Yields:
        The state after every step, in the scheduler's own scaling, (B, C, ...).
    """
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(given, t), t, x).prev_sample
        yield x


def _unit(size: int, i: int) -> Floats:
    unit: Floats = np.zeros(size)
    unit[i] = 1
    return unit


def _walk(scheduler: Any) -> _Traced:
    """Walk a scheduler with unit vectors."""
    traced, size = _Traced(), 1 + PER_ROW * len(scheduler.timesteps)
    shape, free = (1, 1, 1, size), iter(range(1, size))

    def unit(i: int) -> Tensor:
        return torch.tensor(_unit(size, i)).reshape(shape)

    def noise(count: int) -> Tensor:
        traced.draws[-1].append(_Draw(next(free), count))
        return unit(traced.draws[-1][-1].unit)

    def clip(x: Tensor, low: float, high: float) -> Tensor:
        if low != -high:
            raise ValueError(f"this {type(scheduler).__name__} cuts its estimates to {low:g} .. {high:g}, which no table does")
        traced.clips[-1].append(_Clip(x.flatten().numpy(), next(free), high))
        return unit(traced.clips[-1][-1].unit)

    def network(given: Tensor, t: Tensor) -> Tensor:
        traced.seen.append(given.flatten().numpy())
        traced.factors.append(float(given.norm() / state.norm()))
        traced.timesteps.append(float(t))
        traced.outputs.append(next(free))
        traced.draws.append([])
        traced.clips.append([])
        return unit(traced.outputs[-1])

    state = unit(0) * getattr(scheduler, "init_noise_sigma", 1.0)
    with HandedNoise(shape, noise, clip):
        for x in steps_of(scheduler, unit(0), network):
            state = x
    traced.end = state.flatten().numpy()
    return traced


def _levels(scheduler: Any, traced: _Traced, parametrisation: Parametrisation) -> tuple[Floats, Floats, Floats | None]:
    """alphas, sigmas (n,) of what the network is given, and the timesteps (n,) where they do not follow from them."""
    found = []
    for k, (factor, timestep) in enumerate(zip(traced.factors, traced.timesteps, strict=True)):
        alpha, sigma = parametrisation.at_timestep(timestep)
        if abs(factor - 1) > SAME:  # the factor is 1 / sqrt(level^2 + data^2)
            data = parametrisation.sigma_data if isinstance(parametrisation, Edm) else 1.0
            alpha, sigma = parametrisation.at(max(factor**-2 - data**2, 0.0) ** 0.5)
        elif hasattr(scheduler, "sigmas"):
            level = float(scheduler.sigmas[k])
            alpha, sigma = (1 - level, level) if isinstance(parametrisation, Flow) else parametrisation.at(level)
        if abs(parametrisation.scales(sigma).timestep - timestep) < SNAP:
            alpha, sigma = parametrisation.at_timestep(timestep)
        found.append((alpha, sigma))
    alphas, sigmas = np.array(found).T
    follow = np.array([parametrisation.scales(float(sigma)).timestep for sigma in sigmas])
    told = np.array(traced.timesteps)
    return alphas, sigmas, None if np.abs(follow - told).max() < CLEAN else told


def _last_level(parametrisation: Parametrisation, alpha: float) -> tuple[float, float]:
    """Where a plan ends whose last row makes alpha of the data: clean, or a little above."""
    if not 0 < alpha < 1 - CLEAN or isinstance(parametrisation, Edm):
        return 1.0, 0.0
    return alpha, 1 - alpha if isinstance(parametrisation, Flow) else ((1 - alpha) * (1 + alpha)) ** 0.5


class _Tables:
    """The rows of a plan: every state as few terms of what came before it, the nearest first."""

    def __init__(self, states: list[Floats], estimates: list[Floats], traced: _Traced) -> None:
        n = len(states)
        self.states, self.estimates, self.traced = states, estimates, traced
        self.a, self.b, self.clip, self.c = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
        self.drawn: list[int] = []
        self.clip_range: float | None = None
        for row in range(n):
            self._read(row, [*states, traced.end][row + 1])

    def _read(self, row: int, target: Floats) -> None:
        terms = [(self.c[row : row + 1], _unit(target.size, draw.unit)) for draw in self.traced.draws[row]]
        for j in range(row, -1, -1):
            for some in self._at(row, j):
                terms += some
                factors, left = _solved([vector for _, vector in terms], target)
                if left <= SAME:
                    for (place, _), factor in zip(terms, factors, strict=True):
                        place[...] = factor
                    self._note(row, factors)
                    return
        raise ValueError("this scheduler uses noise that it drew in an earlier step, which no table does")

    def _at(self, row: int, j: int) -> Iterator[list[tuple[Floats, Floats]]]:
        """Terms of the time of row j: places in the tables, and vectors."""
        clips = [(self.clip[row, j : j + 1], _unit(self.states[j].size, clip.unit)) for clip in self._clips(j)]
        state, estimate = (self.a[row, j : j + 1], self.states[j]), (self.b[row, j : j + 1], self.estimates[j])
        if row == j:
            yield [state, *(clips or [estimate])]
            yield [estimate] if clips else []
        else:
            yield [*(clips or [estimate])]
            yield [*([estimate] if clips else []), state]

    def _clips(self, j: int) -> list[_Clip]:
        """What was clipped in row j, which must be its estimate."""
        clips = self.traced.clips[j]
        for clip in clips:
            scale = np.abs(self.estimates[j]).max()
            if np.abs(clip.argument - self.estimates[j]).max() > CLOSE * scale or self.clip_range not in (None, clip.top):
                raise ValueError("this scheduler clips something else than its estimate of the image, which no table does")
            self.clip_range = clip.top
        return clips

    def _note(self, row: int, factors: Floats) -> None:
        used = [draw.number for draw, factor in zip(self.traced.draws[row], factors, strict=False) if factor]
        if len(used) > 1:
            raise ValueError("this scheduler adds two noise tensors in a step, which no table does")
        self.drawn += used


def _solved(vectors: list[Floats], target: Floats) -> tuple[Floats, float]:
    """Factors with which vectors add up to a target, and what is left, of its largest number."""
    lengths = np.array([max(float(np.abs(vector).max()), np.finfo(np.float64).tiny) for vector in vectors])
    matrix = np.stack(vectors, 1) / lengths
    used = matrix.any(1) | (target != 0)
    factors = np.linalg.lstsq(matrix[used], target[used], rcond=None)[0]
    scale = max(float(np.abs(target).max()), float(np.abs(factors).max()))
    factors[np.abs(factors) < ROUNDING * scale] = 0
    left = float(np.abs(matrix @ factors - target).max()) / float(np.abs(target).max())
    return factors / lengths, left


def _check(scheduler: Any, plan: Plan, parametrisation: Parametrisation, drawn: list[int]) -> None:
    """Walk both with numbers, large ones among them. Raises ValueError where a table is not what the scheduler does."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 8, 8)
    start, outputs, noises = (
        torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (1, plan.rows, PER_ROW * plan.rows)
    )
    given = iter(outputs)
    with HandedNoise(shape, lambda count: noises[count]):
        *_, theirs = steps_of(scheduler, start[0], lambda *_: next(given))
    given = iter(outputs)

    def denoise(x: Tensor, sigma: float, **_: float) -> Tensor:
        scales = parametrisation.scales(sigma)
        made: Tensor = scales.skip * x + scales.out * next(given)
        return made

    ours = sample(denoise, plan.begin(start[0]), plan, [noises[count] for count in drawn])
    error, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not error <= CLOSE * scale:
        raise ValueError(
            f"this {type(scheduler).__name__} is no table: its steps depend on the images as a table's cannot "
            f"({error:.2g} apart, of {scale:.2g}); choose a scheduler without that setting"
        )

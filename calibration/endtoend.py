"""Tables fitted as a whole: a plan's numbers and its noise levels by gradient descent through the sampling loop.

Relatives: LD3 (Tong et al. 2024), S4S (Frankel et al. 2025), bespoke solvers (Shaul et al. 2024). What the images are to come
near to is a loss: what many steps make of the same noise (`pixels`), or real images as a set, in features (`Energy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from fewstep.calibration.inputs import Drawn
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images, batches
from fewstep.data.arrays import ArraySamples
from fewstep.evaluation.cache import arrays_digest
from fewstep.evaluation.features import Numbers, PixelStatistics
from fewstep.evaluation.metrics import Features
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.parametrisation import Parametrisation
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import Grid, karras
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.system.progress import Track, silent

__all__ = ["Energy", "Loss", "Pair", "Real", "Table", "TableFit", "best_grid", "fit_table", "pixels"]

Pair = tuple[Drawn, Tensor | None]  # what images are made from and, where a loss reads them, their targets
Loss = Callable[[Tensor, Any], Tensor]  # of images made and their targets, (B, C, ...) both

# Where to look for a grid to start from: noise levels of its first and its last step.
FIRST, LAST = (80.0, 40.0, 20.0, 10.0, 5.0, 3.0), (0.002, 0.02, 0.05, 0.1, 0.2, 0.4)
REAL = 2000  # images, about
EVERY = 25  # iterations between two looks at unseen noise


class Table(nn.Module):
    """A plan with one call per step as parameters:

        x_{k+1} = (1 + scale_k) ratio_k x_k + gain_k sum_j history[k,j] D_j,
        ratio_k = sigma_{k+1} / sigma_k,  gain_k = alpha_{k+1} - alpha_k ratio_k

    so that the numbers follow when a level moves. Starts as the plan it is given, whose rows must have this form: DDIM and
    DPM-Solver++(2M) do. The last state stays clean data, and a row without guidance stays without.
    """

    def __init__(self, plan: Plan, parametrisation: Parametrisation) -> None:
        super().__init__()
        ratio = plan.sigmas[1:] / plan.sigmas[:-1]
        gain = plan.alphas[1:] - plan.alphas[:-1] * ratio
        self.parametrisation = parametrisation
        self.guided = plan.guidance != 1
        self.log_level = nn.Parameter(torch.tensor(np.log(plan.sigmas[:-1] / plan.alphas[:-1]), dtype=torch.float32))
        self.scale = nn.Parameter(torch.zeros(plan.rows))
        self.history = nn.Parameter(torch.tensor(plan.b / gain[:, None], dtype=torch.float32))
        self.guidance = nn.Parameter(torch.tensor(plan.guidance, dtype=torch.float32))

    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alphas, sigmas (n + 1,), the diagonal of a (n,), and b (n, n)."""
        alphas, sigmas = self.parametrisation.at(self.log_level.exp())
        alphas, sigmas = torch.cat([alphas, alphas.new_ones(1)]), torch.cat([sigmas, sigmas.new_zeros(1)])
        ratio = sigmas[1:] / sigmas[:-1]
        gain = alphas[1:] - alphas[:-1] * ratio
        return alphas, sigmas, ratio * (1 + self.scale), gain[:, None] * self.history.tril()

    def forward(self, denoiser: Denoiser, inputs: Drawn) -> Tensor:
        """The last state, (B, C, ...).

        Args:
            denoiser: D(x, sigma, *condition), on the table's device.
            inputs: B of them, there too.
        """
        _, sigmas, a, b = self.numbers()
        denoise = guided(denoiser, inputs.condition, inputs.null)
        x = sigmas[0] * inputs.noise[:, 0]
        estimates: list[Tensor] = []
        for k in range(len(a)):
            level = sigmas[k].expand(len(x))
            scale: Any = self.guidance[k]
            estimates.append(denoise(x, level, scale) if self.guided[k] else denoise(x, level))
            x = a[k] * x + sum(b[k, j] * estimate for j, estimate in enumerate(estimates))
        return x

    def plan(self) -> Plan:
        """The numbers as they are now."""
        with torch.no_grad():
            alphas, sigmas, a, b = (t.double().cpu().numpy() for t in self.numbers())
            guidance = np.where(self.guided, self.guidance.double().cpu().numpy(), 1.0)
        return Plan(alphas, sigmas, np.diag(a), b, np.zeros(len(a)), guidance)


@dataclass(frozen=True)
class TableFit:
    """The plan that was best on noise it was not fitted on.

    Args:
        plan: its numbers.
        losses: on that noise, of the start and then every EVERY iterations.
    """

    plan: Plan
    losses: list[float]

    @classmethod
    def of(cls, table: Table, state: Mapping[str, Any]) -> TableFit:
        """What a fit has come to, from what it keeps.

        Args:
            table: of the same start; it gets the best numbers.
            state: what `keep` of `fit_table` was given.
        """
        table.load_state_dict(_tensors(state["best"]))
        return cls(table.plan(), state["losses"])


def pixels(made: Tensor, targets: Tensor) -> Tensor:
    """Mean square distance, in the network's own space.

    Args:
        made, targets: states, (B, C, ...).

    Returns:
        ().
    """
    return nn.functional.mse_loss(made, targets)


class Real(NamedTuple):
    """Real images as a table sees them: what they are called, networks, and their features in each, (n, num_features)."""

    data: str
    models: Sequence[Features]
    features: Sequence[Tensor]

    @classmethod
    def of(cls, images: Images, *models: Features) -> Real:
        """About REAL of them, in these networks and in plain pixels, so that no fit buys features with brightness.

        Evaluate on others, in other networks than these: see fewstep.evaluation.features.FITTING.

        Args:
            images: training ones.
            models: networks of features.
        """
        models = (*models, PixelStatistics())
        some = torch.cat([torch.tensor(pixels) for pixels, _ in batches(images.about(REAL), 250)])
        with torch.no_grad():
            return cls(images.source, models, [torch.cat([model(part) for part in torch.split(some, 250)]) for model in models])

    @classmethod
    def of_arrays(cls, samples: ArraySamples) -> Real:
        """About REAL samples that are arrays, by their own numbers in units of their deviations."""
        some, numbers = samples.about(REAL), Numbers(samples.signature.output)
        values = np.moveaxis(some.rows[some.index], -1, 1)
        return cls(samples.source, [numbers], [numbers(torch.from_numpy(np.ascontiguousarray(values)))])

    def about(self) -> dict[str, Any]:
        """What a plan's record says of them."""
        return {"data": self.data, "features": [type(model).__name__ for model in self.models]} | {
            "trained_in": [model.trained_in for model in self.models]
        }

    def digest(self) -> str:
        """A hash of the features."""
        return arrays_digest({str(i): features.cpu().numpy() for i, features in enumerate(self.features)})


class Energy:
    """Energy distance between features of what was made and those of real images; targets are not read.

    2 E|f - r| - E|f - f'|, the part of it that depends on what was made, in units of E|r - r'|. Szekely and Rizzo 2013. Summed
    over networks: one alone has weaknesses of its own, which a fit finds; plain pixels are one of them.
    """

    def __init__(self, real: Real, teacher: Teacher) -> None:
        self.models = [model.requires_grad_(False).to(teacher.device) for model in real.models]
        self.real, self.teacher = [features.to(teacher.device) for features in real.features], teacher
        self.units = [_apart(features) for features in self.real]

    def __call__(self, made: Tensor, targets: object) -> Tensor:  # noqa: ARG002
        outputs, total = self.teacher.in_units(made), made.new_zeros(())
        for model, real, unit in zip(self.models, self.real, self.units, strict=True):
            features = model(outputs)
            total = total + (2 * torch.cdist(features, real).mean() - _apart(features)) / unit
        return total


def _apart(features: Tensor) -> Tensor:
    """The mean distance of two of these features (n, d)."""
    return torch.cdist(features, features).sum() / (len(features) * (len(features) - 1))


def best_grid(
    teacher: Teacher, steps: int, guidance: Guidance, inputs: Drawn, targets: Tensor, *, track: Track = silent
) -> Grid:
    """Of a few grids, in EDM's coordinates, the best for DPM-Solver++(2M) by `pixels`.

    Args:
        teacher: makes the samples.
        steps: of the grid.
        guidance: by noise level.
        inputs: to make samples from, without noise on the way.
        targets: what these are to become, (n, C, ...).
        track: shows progress.
    """
    parametrisation = teacher.denoiser.parametrisation
    highest = parametrisation.grid(2).levels[0]
    firsts = [level for level in FIRST if level <= highest * 1.01] or [float(highest)]
    grids = [
        Grid(np.ones(2), np.array([first, 0.0])) if steps == 1 else karras(steps, last, first)
        for first in firsts
        for last in (LAST if steps > 1 else LAST[:1])
    ]
    plans = [dpmpp_2m(parametrisation.coordinates(grid), guidance) for grid in grids]
    losses = [float(pixels(teacher.sample(plans[i], inputs), targets)) for i in track(range(len(plans)), "look for a grid")]
    return grids[int(np.argmin(losses))]


def fit_table(
    table: Table,
    denoiser: Denoiser,
    seen: Callable[[int], Pair],
    unseen: Pair,
    *,
    loss: Loss = pixels,
    iterations: int = 100,
    batch: int = 32,
    lr: float = 0.01,
    known: Mapping[str, Any] | None = None,
    keep: Callable[[Mapping[str, Any]], None] = lambda _: None,
    track: Track = silent,
) -> TableFit:
    """Adam with a cosine to 0, on what `seen` gives for each iteration; levels move three times as fast as weights.

    Finds the table that is best on what is unseen. Every EVERY iterations, `keep` is given what the fit needs to go on from
    there, as JSON; with it as `known`, and the same arguments otherwise, it comes to the same table.

    Args:
        table: the start; it is changed, and goes to the denoiser's device.
        denoiser: frozen.
        seen: inputs of an iteration, from 0, and their targets.
        unseen: inputs that decide, and their targets.
        loss: of states (B, C, ...) and their targets; () with a gradient.
        iterations: updates.
        batch: unseen samples that are made at once.
        lr: of weights; of levels it is three times that.
        known: what `keep` was given last.
        keep: told where the fit stands.
        track: shows progress.

    Returns:
        The best plan, and the losses on what is unseen.
    """
    device = next(denoiser.parameters()).device
    table.to(device)
    weights = [table.scale, table.history, table.guidance]
    optimizer = Adam([{"params": [table.log_level], "lr": 3 * lr}, {"params": weights, "lr": lr}], betas=(0.9, 0.99))
    schedule = CosineAnnealingLR(optimizer, iterations)
    if known:
        _go_on(known, table, optimizer, schedule)
        first, best, losses = known["step"], known["best"], list(known["losses"])
    else:
        first, best, losses = 0, _lists(table.state_dict()), [_on(table, denoiser, unseen, loss, batch)]
    for step in track(range(first, iterations), "fit table"):
        inputs, targets = seen(step)
        error = loss(table(denoiser, inputs.to(device)), _moved(targets, device))
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0 or step + 1 == iterations:
            losses.append(_on(table, denoiser, unseen, loss, batch))
            if losses[-1] == min(losses):
                best = _lists(table.state_dict())
            keep({"step": step + 1, "best": best, "losses": losses} | _state(table, optimizer, schedule))
    return TableFit.of(table, {"best": best, "losses": losses})


def _state(table: Table, optimizer: Adam, schedule: LRScheduler) -> dict[str, Any]:
    of = optimizer.state_dict()
    moments = {str(i): _lists(found) for i, found in of["state"].items()}
    return {
        "table": _lists(table.state_dict()),
        "optimizer": {"state": moments, "param_groups": of["param_groups"]},
        "schedule": schedule.state_dict(),
    }


def _go_on(known: Mapping[str, Any], table: Table, optimizer: Adam, schedule: LRScheduler) -> None:
    of = known["optimizer"]
    moments = {int(i): _tensors(found) for i, found in of["state"].items()}
    table.load_state_dict(_tensors(known["table"]))
    optimizer.load_state_dict({"state": moments, "param_groups": of["param_groups"]})
    schedule.load_state_dict(known["schedule"])


def _lists(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def _tensors(lists: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in lists.items()}


def _on(table: Table, denoiser: Denoiser, unseen: Pair, loss: Loss, batch: int) -> float:
    inputs, targets = unseen
    device = next(denoiser.parameters()).device
    with torch.no_grad():
        made = [table(denoiser, inputs[i : i + batch].to(device)) for i in range(0, len(inputs), batch)]
        return float(loss(torch.cat(made), _moved(targets, device)))


def _moved(targets: Tensor | None, device: torch.device) -> Tensor | None:
    return None if targets is None else targets.to(device)

"""Fit a plan for a network of a bundle, step by step (IIA) or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import model_digest
from fewstep.artifact.manifest import PlanEntry, check_name
from fewstep.artifact.records import Fitted
from fewstep.calibration.configs import FitConfig, TableConfig
from fewstep.calibration.endtoend import Energy, Pair, Real, Table, TableFit, best_grid, fit_table, pixels
from fewstep.calibration.iia import Fit, Part, StepFit, fit
from fewstep.calibration.inputs import Drawn, draw
from fewstep.calibration.methods import METHODS, Method
from fewstep.calibration.teacher import Teacher
from fewstep.data.inputs import Arrays
from fewstep.evaluation.cache import Cache, arrays_digest, default_folder
from fewstep.models.denoiser import load_network
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Floats, Plan
from fewstep.sampling.schedule import Grid
from fewstep.sampling.solvers import dpmpp_2m, heun
from fewstep.system.processes import keep_to_own_cores, several_on_cpu
from fewstep.system.progress import Track, silent

__all__ = ["calibrate", "calibrate_table"]

NOT_OF_CONFIG = ("network_sha256", "inputs_sha256", "data", "features", "trained_in")  # of what a fit depends on
REFERENCE_STEPS = 18  # of Heun, 35 calls where it ends in clean data


def calibrate(
    bundle: Bundle,
    config: FitConfig,
    *,
    name: str,
    network: str = "teacher",
    arrays: Arrays | None = None,
    cache: Path | None = None,
    track: Track = silent,
) -> tuple[Bundle, Fit]:
    """Fit a method on the usual grid of a network of the bundle and add the plan `name` to it. Needs no data.

    Under `accelerate launch`, the processes share the samples. Steps that were fitted with the same settings for the same
    network are read from the cache, so a stopped fit goes on where it was.

    Args:
        bundle: with the network.
        config: of the fit.
        name: of the new plan; one that is there is replaced.
        network: by name.
        arrays: what samples are made from, where that cannot be drawn at random; see fewstep.data.conditions.
        cache: a directory; that of the user unless given.
        track: shows progress.

    Returns:
        The bundle as it is then, and the fit.

    Raises:
        ValueError: when the bundle has no such network, or its samples are made from arrays and there are none.
    """
    check_name(name)
    method: Method = METHODS[config.method]
    keep_to_own_cores()
    processes = PartialState(cpu=several_on_cpu())  # an Accelerator would fix the precision of a training in the same process
    settings = _settings(config, bundle, network, arrays)
    denoiser = load_network(bundle, network).to(processes.device).requires_grad_(False)
    grid = denoiser.parametrisation.grid(config.steps)
    inputs = draw(bundle.manifest, config.samples, seed=config.seed, arrays=arrays)
    begin, parts = method.solver(grid, config.interval()).begin, []
    with processes.split_between_processes(list(range(0, config.samples, config.batch))) as starts:
        for start in starts:
            some = inputs[start : start + config.batch].to(processes.device)
            parts.append(Part(guided(denoiser, some.condition, some.null), begin(some.noise[:, 0])))
    kept = Cache(cache or default_folder(), "fit", settings)
    (read,) = broadcast_object_list([kept.read()])  # one process's: the others' caches may hold less, and all must agree
    known = [StepFit(*step) for step in read or ()]

    def fitted(steps: list[StepFit]) -> None:
        if processes.is_main_process and len(steps) > len(known):
            kept.write(steps)

    def total(sums: Floats) -> Floats:
        found: Floats = reduce(torch.from_numpy(sums).to(processes.device), "sum").cpu().numpy()
        return found

    done = fit(
        method,
        grid,
        parts,
        guidance=config.interval(),
        fine=config.fine,
        coordinates=denoiser.parametrisation.coordinates,
        known=known,
        fitted=fitted,
        total=total,
        track=track,
    )
    if processes.is_main_process:
        title = f"{method.title}, {config.steps} steps"
        _add(bundle, name, network, title, done.plan, settings, steps=[step._asdict() for step in done.steps])
    processes.wait_for_everyone()
    return Bundle.load(bundle.root), done


def calibrate_table(
    bundle: Bundle,
    config: TableConfig,
    *,
    name: str,
    network: str = "teacher",
    real: Real | None = None,
    arrays: Arrays | None = None,
    cache: Path | None = None,
    track: Track = silent,
) -> tuple[Bundle, TableFit]:
    """Fit a table's numbers and levels to real images or, without them, to what Heun makes in 18 steps from the same noise.

    Adds the plan `name`. Processes do not share this work. A stopped fit goes on from what the cache has of it.

    Args:
        bundle, name, network, arrays, cache, track: as for `calibrate`.
        config: of the fit.
        real: images or arrays to come near to.

    Returns:
        The bundle as it is then, and the fit.

    Raises:
        ValueError: as `calibrate` does, and for real images and a batch, or unseen inputs, of one.
    """
    check_name(name)
    if real and min(config.batch, config.unseen) < 2:
        raise ValueError("a table toward real images compares sets: it needs a batch of 2 or more, and as many unseen")
    processes = PartialState(cpu=several_on_cpu())
    teacher = Teacher(bundle, network, batch=config.batch, device=processes.device)
    settings = _settings(config, bundle, network, arrays) | (real.about() if real else {"data": None})
    kept = Cache(cache or default_folder(), "table", settings | ({"real_sha256": real.digest()} if real else {}))
    (known,) = broadcast_object_list([kept.read()])  # as in calibrate

    def keep(state: Mapping[str, Any]) -> None:
        if processes.is_main_process:
            kept.write(state)

    done = _table(config, teacher, real, arrays, known=known, keep=keep, track=track)
    if processes.is_main_process:
        toward = "real images" if real else "the many-step image"
        title = f"fitted table, {config.steps} steps, to {toward}"
        _add(bundle, name, network, title, done.plan, settings, losses=done.losses)
    processes.wait_for_everyone()
    return Bundle.load(bundle.root), done


def _table(
    config: TableConfig,
    teacher: Teacher,
    real: Real | None,
    arrays: Arrays | None,
    *,
    known: Mapping[str, Any] | None,
    keep: Callable[[Mapping[str, Any]], None],
    track: Track,
) -> TableFit:
    """Fit a table, or the rest of what is known of it."""
    parametrisation = teacher.denoiser.parametrisation

    def many_step(inputs: Drawn) -> Tensor:
        return teacher.sample(heun(parametrisation.grid(REFERENCE_STEPS), config.interval()), inputs, track=track)

    def start(grid: Grid) -> Table:
        return Table(dpmpp_2m(parametrisation.coordinates(grid), config.interval()), parametrisation)

    if known and known["step"] == config.iterations:
        return TableFit.of(start(Grid(*known["grid"])), known)
    inputs = teacher.draw(config.samples, seed=2 * config.seed, arrays=arrays)
    unseen = teacher.draw(config.unseen, seed=2 * config.seed + 1, arrays=arrays)
    if known:
        grid = Grid(*known["grid"])
    else:
        few = inputs[: 2 * config.batch]
        grid = best_grid(teacher, config.steps, config.interval(), few, many_step(few), track=track)
    return fit_table(
        start(grid),
        teacher.denoiser,
        _seen(config, inputs, None if real else many_step(inputs)),
        (unseen, None if real else many_step(unseen)),
        loss=Energy(real, teacher) if real else pixels,
        iterations=config.iterations,
        batch=config.batch,
        lr=config.lr,
        known=known,
        keep=lambda state: keep({**state, "grid": [grid.alphas.tolist(), grid.sigmas.tolist()]}),
        track=track,
    )


def _seen(config: TableConfig, inputs: Drawn, targets: Tensor | None) -> Callable[[int], Pair]:
    """What every iteration of a fit sees: some of the inputs, with noise of its own where nothing was made from theirs."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [torch.randint(len(inputs), (config.batch,), generator=generator) for _ in range(config.iterations)]
    seeds = torch.randint(2**62, (config.iterations,), generator=generator).tolist()

    def seen(step: int) -> Pair:
        some = inputs[drawn[step]]
        if targets is not None:
            return some, targets[drawn[step]]
        noise = torch.randn(some.noise.shape, generator=torch.Generator().manual_seed(seeds[step]))
        return replace(some, noise=noise), None

    return seen


def _settings(config: FitConfig | TableConfig, bundle: Bundle, network: str, arrays: Arrays | None) -> dict[str, Any]:
    """What a fit depends on."""
    settings = asdict(config) | {"network_sha256": model_digest(bundle.manifest, network)}
    return settings | ({"inputs_sha256": arrays_digest(arrays)} if arrays else {})


def _add(bundle: Bundle, name: str, network: str, solver: str, plan: Plan, settings: Mapping[str, Any], **found: Any) -> None:
    consistency = np.round(plan.consistency(), 12).tolist()
    with bundle.edit() as draft:
        draft.manifest.plans[name] = PlanEntry.of(plan, denoiser=network, solver=solver)
        about = {key: value for key, value in settings.items() if key in NOT_OF_CONFIG}
        of_config = {key: value for key, value in settings.items() if key not in NOT_OF_CONFIG}
        record = Fitted(settings=of_config, **about, **found, consistency=consistency)
        draft.manifest.records.plans[name] = record

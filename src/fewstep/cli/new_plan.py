"""Plans that `export` writes into a bundle before their graphs: of a solver, or of one of diffusers' schedulers."""

from __future__ import annotations

from pathlib import Path

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import PlanEntry, check_name
from fewstep.artifact.records import Imported
from fewstep.cli.app import solver_of
from fewstep.sampling.guidance import Guidance
from fewstep.system.json_object import read_object

__all__ = ["by_scheduler", "by_solver", "with_plan"]


def by_solver(bundle: Bundle, solver: str, steps: int, guidance: Guidance) -> tuple[PlanEntry, str]:
    """A solver's plan on the usual grid of the teacher, and its name."""
    teacher = bundle.pick("network", "teacher", bundle.manifest.denoisers)
    plan = solver_of(solver)(teacher.parametrisation.grid(steps), guidance)
    return PlanEntry.of(plan, denoiser="teacher", solver=f"{solver}, {steps} steps"), f"{solver}{steps}{guidance.suffix}"


def by_scheduler(bundle: Bundle, scheduler: str, config: Path | None, steps: int, guidance: Guidance) -> tuple[PlanEntry, str]:
    """The plan of a scheduler of diffusers for the teacher, and its name."""
    from fewstep.models.proof import PIPELINES
    from fewstep.models.schedulers import plan_for

    teacher = bundle.pick("network", "teacher", bundle.manifest.denoisers)
    record = bundle.manifest.records.components.get("teacher")
    own, mu, pipeline = (record.scheduler, record.mu, record.pipeline) if isinstance(record, Imported) else (None, None, None)
    sigmas = PIPELINES[pipeline].sigmas if pipeline in PIPELINES else None
    if config and config.is_dir():
        config /= "scheduler_config.json"
    settings = read_object(config) if config else None
    plan, name = plan_for(teacher.parametrisation, scheduler, steps, guidance, own=own, mu=mu, config=settings, sigmas=sigmas)
    return PlanEntry.of(plan, denoiser="teacher", solver=f"{scheduler} of diffusers, {steps} steps"), name


def with_plan(bundle: Bundle, entry: PlanEntry, name: str) -> Bundle:
    """Write a plan into the bundle, and return it as it is then.

    Raises ValueError where what has that name is another one.
    """
    check_name(name)
    known = bundle.manifest.plans.get(name)
    if known and known.model_dump(exclude={"solver"}) == entry.model_dump(exclude={"solver"}):
        return bundle
    if known or name in bundle.manifest.components:
        is_it = f"the plan of {known.solver}" if known else "a part of its model"
        raise ValueError(f"{bundle.root.name} has {name!r} already, {is_it}; give the new one another --name")
    with bundle.edit() as draft:
        draft.manifest.plans[name] = entry
    return Bundle.load(bundle.root)

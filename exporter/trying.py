"""What a module is asked before it is exported: whether it takes what graphs will be given, and makes states of it."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.artifact.signature import Signature, State
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.plan import Plan

__all__ = ["refuse_unfit"]

SAME = 1e-4  # of the largest number: one question has one answer, but for the order in which threads add


def refuse_unfit(denoiser: Denoiser, signature: Signature, state: State, plan: Plan) -> None:
    """Raise ValueError for a module that does not make states of states, finite ones and always the same, of every input.

    Args:
        denoiser: around the module, in eval mode.
        signature: whose inputs it is given.
        state: what it is to make.
        plan: at whose first and last noise level it is asked.
    """
    given = {name: torch.from_numpy(value) for name, value in signature.example(2, guided=False).items()}
    first = _made(denoiser, state, plan, 0, given)
    for row in (0, plan.rows - 1):
        made = _made(denoiser, state, plan, row, given)
        if not made.isfinite().all():
            raise ValueError(
                f"the module makes numbers that are not finite at the noise level {plan.sigmas[row]:g}; mend that first"
            )
        if row == 0 and (made - first).abs().max() > SAME * made.abs().max():
            raise ValueError(
                "the module answers one question in two ways, so it draws numbers of its own; a graph has none, take them out"
            )
    for each in signature.inputs:
        if each.choices is not None:
            _refuse_fewer_values(denoiser, state, plan, given, each.name, each.choices)


def _refuse_fewer_values(
    denoiser: Denoiser, state: State, plan: Plan, given: dict[str, Tensor], name: str, classes: int
) -> None:
    """Raises ValueError for a module that does not take every class, and the number behind the last, which means "none"."""
    try:
        _made(denoiser, state, plan, 0, given | {name: torch.full_like(given[name], classes)})
    except ValueError as error:
        raise ValueError(
            f"the module does not take {classes} by {name!r}, the number after its {classes} classes, which means none; an "
            f"embedding of them has {classes + 1} rows"
        ) from error


def _made(denoiser: Denoiser, state: State, plan: Plan, row: int, given: dict[str, Tensor]) -> Tensor:
    """What the module makes of noise at a plan's row. Raises ValueError where it does not run, or makes no state."""
    x = torch.randn(2, *state.shape, generator=torch.Generator().manual_seed(row))
    timestep = denoiser.scales(float(plan.sigmas[row])).timestep if plan.timesteps is None else plan.timesteps[row]
    try:
        with torch.no_grad():
            return denoiser.evaluate(x, torch.tensor([float(timestep)]), *given.values())
    except Exception as error:  # of whatever kind a module raises for what it does not expect
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the module does not run with these inputs and states {state.shape}: {reason}") from error

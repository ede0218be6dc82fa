"""Fitted plans used elsewhere than where they were fitted: taken over into another bundle, and told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import Manifest, PlanEntry
from fewstep.artifact.records import Adopted, PlanRecord
from fewstep.sampling.guidance import Guidance

__all__ = ["adopt", "mismatch"]


def adopt(
    bundle: Bundle,
    source: Bundle,
    plan: str,
    *,
    name: str,
    denoiser: str = "teacher",
    guidance: Guidance | None = None,
) -> Bundle:
    """Take over a plan of another bundle (or of the same one) for a denoiser of this one, under the name `name`.

    A plan says nothing of the size of states, so any network of the same coordinates will do; how well is another matter, see
    `mismatch`.

    Args:
        bundle: it gets the plan.
        source: the bundle that has it.
        plan: its name there.
        name: what it is called here; a plan of that name is replaced.
        denoiser: a network of `bundle`, which the plan is to walk.
        guidance: instead of the plan's own.

    Returns:
        The bundle as it is then.

    Raises:
        ValueError: for a plan or network there is not, one in other coordinates, or guidance that no step takes.
    """
    entry: PlanEntry = source.pick("plan", plan, source.manifest.plans)
    wanted: DenoiserEntry = bundle.pick("network", denoiser, bundle.manifest.denoisers)
    found = source.manifest.denoisers[entry.denoiser].parametrisation
    levels = np.array(entry.sigmas) / np.maximum(entry.alphas, 1e-300)
    if found.kind != wanted.parametrisation.kind:
        raise ValueError(
            f"the plan {plan!r} is in {found.kind} coordinates, the network {denoiser!r} in {wanted.parametrisation.kind} "
            "ones; fit one for it with: fewstep calibrate"
        )
    if found != wanted.parametrisation and entry.timesteps:
        raise ValueError(
            f"the plan {plan!r} tells its network timesteps of its own, which mean other levels to {denoiser!r}; "
            "write one for it with: fewstep export --scheduler"
        )
    table = entry.plan()
    if guidance:
        table = replace(table, guidance=guidance.at(levels[:-1]))
        if guidance.scale != 1 and not table.guided:
            raise ValueError(
                f"no step of {plan!r} starts at a noise level above {guidance.lo:g} and up to {guidance.hi:g}, so none would "
                f"be guided; its steps start at {', '.join(f'{level:.3g}' for level in levels[:-1])}"
            )
    own: dict[str, Any] | None = dict(guidance.settings()) if guidance else None
    adopted = Adopted(bundle=source.manifest.name, plan=plan, guidance=own)
    with bundle.edit() as draft:
        draft.manifest.plans[name] = PlanEntry.of(table, denoiser=denoiser, solver=entry.solver)
        draft.manifest.records.plans[name] = _with(source.manifest.records.plans.get(plan), adopted)
    return Bundle.load(bundle.root)


def _with(record: PlanRecord | None, adopted: Adopted) -> PlanRecord:
    """A plan's record where it was taken over; its own is kept."""
    if record is None or isinstance(record, Adopted):
        return adopted
    return record.model_copy(update={"adopted": adopted})


def mismatch(bundle: Bundle, plan: str) -> str | None:
    """What a fitted plan is used with and was not fitted for, as a sentence; None where all is as it was fitted.

    Args:
        bundle: that holds the plan and its network.
        plan: by name.

    Raises:
        ValueError: for a plan there is not.
    """
    entry: PlanEntry = bundle.pick("plan", plan, bundle.manifest.plans)
    record = bundle.manifest.records.plans.get(plan)
    if record is None or isinstance(record, Adopted):
        return None
    against = []
    if _known(bundle.manifest, entry.denoiser) and record.network_sha256 != bundle.model_digest(entry.denoiser):
        decoder = " and the decoder" if bundle.manifest.decoder else ""
        against.append(f"with other weights than those of {entry.denoiser!r}{decoder} now")
    if record.adopted and record.adopted.guidance:
        against.append("with another guidance")
    if not against:
        return None
    return f"the plan {plan!r} was fitted {' and '.join(against)}; compare it with one fitted here before you ship it"


def _known(manifest: Manifest, denoiser: str) -> bool:
    """Whether what makes a denoiser's samples can be told from another: by its files, or by the digests that stand for them."""
    makers = {name for name in manifest.components if name == denoiser or name not in manifest.denoisers}
    return all(manifest.components[name].directory or manifest.components[name].digest for name in makers)

"""Fitted plans used elsewhere than where they were fitted: taken over into another bundle, and told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import NetworkEntry, PlanEntry
from fewstep.sampling.guidance import Guidance

__all__ = ["adopt", "mismatch"]


def adopt(
    bundle: Bundle,
    source: Bundle,
    plan: str,
    *,
    name: str,
    network: str = "teacher",
    guidance: Guidance | None = None,
) -> Bundle:
    """Take over a plan of another bundle (or of the same one) for a network of this one, under the name `name`.

    guidance: instead of the plan's own. A plan says nothing of the size of images, so any network of the same coordinates will
    do; how well is another matter, see `mismatch`.

    Raises ValueError for a plan or network there is not, or one in other coordinates.
    """
    entry: PlanEntry = source.pick("plan", plan, source.manifest.plans)
    wanted: NetworkEntry = bundle.pick("network", network, bundle.manifest.networks)
    found = source.manifest.networks[entry.network].parametrisation
    levels = np.array(entry.sigmas) / np.maximum(entry.alphas, 1e-300)
    if found.kind != wanted.parametrisation.kind:
        raise ValueError(
            f"the plan {plan!r} is in {found.kind} coordinates, the network {network!r} in {wanted.parametrisation.kind} ones; "
            "fit one for it with: fewstep calibrate"
        )
    if found != wanted.parametrisation and entry.timesteps:
        raise ValueError(
            f"the plan {plan!r} tells its network timesteps of its own, which mean other levels to {network!r}; "
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
    about = dict(source.manifest.provenance.plans.get(plan, {}))
    about |= {"adopted": {"bundle": source.manifest.name, "plan": plan, "guidance": guidance.settings() if guidance else None}}
    with bundle.edit() as draft:
        draft.manifest.plans[name] = PlanEntry.of(table, network=network, solver=entry.solver)
        draft.manifest.provenance.plans[name] = about
    return Bundle.load(bundle.root)


def mismatch(bundle: Bundle, plan: str) -> str | None:
    """What a fitted plan is used with and was not fitted for, as a sentence; None where all is as it was fitted."""
    entry: PlanEntry = bundle.pick("plan", plan, bundle.manifest.plans)
    about = bundle.manifest.provenance.plans.get(plan)
    if not isinstance(about, dict) or "network_sha256" not in about:
        return None
    network = bundle.manifest.networks[entry.network]
    against = []
    known = network.directory or network.digest
    if known and about["network_sha256"] != bundle.network_digest(entry.network):
        decoder = " and the decoder" if bundle.manifest.latent else ""
        against.append(f"with other weights than those of {entry.network!r}{decoder} now")
    if about.get("adopted", {}).get("guidance"):
        against.append("with another guidance")
    if not against:
        return None
    return f"the plan {plan!r} was fitted {' and '.join(against)}; compare it with one fitted here before you ship it"

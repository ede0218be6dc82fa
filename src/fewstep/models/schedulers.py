"""diffusers' schedulers by their configurations: what a network estimates, and which plan they are. Needs torch and diffusers.

No scheduler is coded twice: diffusers makes it, fewstep.models.tracing reads it off.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from math import exp
from typing import Any

import numpy as np

from fewstep.models.accounting import account, arguments, keys_of
from fewstep.models.tracing import trace
from fewstep.sampling.guidance import PLAIN, Guidance
from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import MAX_STEPS
from fewstep.sampling.solvers import moved

__all__ = ["dynamic_mu", "make_scheduler", "parametrisation_of", "plan_for", "plan_name", "scheduler_plan", "with_steps"]

VP = """
DDPM DDIM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete
DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep SASolver LCM TCD
"""
KINDS = {f"{name}Scheduler": "vp" for name in VP.split()} | {
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "FlowMatchLCMScheduler": "flow",
}
# What no table does, or what would change what the network is told: a key, the values at which it is plain, and why.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "thresholding": ((False, None), "its limit depends on every image"),
    "variance_type": (
        (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "its noise depends on the image",
    ),
    "timestep_type": (("discrete", None), "a network that is told the logarithm of the noise level is not driven"),
    "invert_sigmas": ((False, None), "a network that counts its levels from the image to noise is not driven"),
    "solver_p": ((None,), "a scheduler within another is not driven"),
}
SPACINGS = ("karras", "exponential", "beta", "lu")
LEVELS = 1000  # of an EDM network, as a discrete schedule


def make_scheduler(config: Mapping[str, Any], name: str | None = None) -> Any:
    """The scheduler of a configuration, or the one called `name` with the keys that it has in common with that.

    Args:
        config: as diffusers writes it.
        name: of a class of diffusers; the configuration's own unless given.

    Raises:
        ValueError: for one that fewstep does not read, a key that nothing reads, or a setting that is refused.
    """
    name = name or str(config.get("_class_name"))
    if name not in KINDS:
        raise ValueError(f"the scheduler is a {name}; fewstep reads {', '.join(KINDS)}")
    diffusers = importlib.import_module("diffusers")
    made = getattr(diffusers, name)
    account(config, made, sisters=[getattr(diffusers, sister) for sister in KINDS if hasattr(diffusers, sister)])
    given = arguments(config, made)
    for key, (plain, why) in REFUSED.items():
        if key in given and given[key] not in plain:
            raise ValueError(f"this {name} has {key} {given[key]!r}, which is refused: {why}")
    try:
        return made(**given)
    except Exception as error:  # foreign numbers in foreign code
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"diffusers makes no {name} of this configuration ({reason}); correct its settings") from None


def parametrisation_of(config: Mapping[str, Any], *, mu: float | None = None) -> Parametrisation:
    """What a network estimates, by the configuration of its scheduler.

    Args:
        config: of the scheduler that the network was trained for.
        mu: the shift of a flow that shifts dynamically.

    Raises:
        ValueError: where fewstep has no word for it, or mu is needed and not given.
    """
    scheduler = make_scheduler(config)
    name, found = type(scheduler).__name__, scheduler.config
    predicts = found.get("prediction_type", "epsilon")
    if KINDS[name] == "flow" or found.get("use_flow_sigmas") or predicts == "flow_prediction":
        return _flow(name, found, mu)
    if KINDS[name] == "edm":
        if predicts != "epsilon":
            raise ValueError(f"this {name} has prediction_type {predicts!r}; of EDM networks, fewstep drives 'epsilon'")
        return Edm(sigma_data=found.sigma_data, time_scale=0.25)
    if predicts not in ("epsilon", "v_prediction"):
        raise ValueError(f"this {name} has prediction_type {predicts!r}; fewstep drives 'epsilon' and 'v_prediction'")
    return Eps(betas=_betas(name, found)) if predicts == "epsilon" else Velocity(betas=_betas(name, found))


def _betas(name: str, found: Any) -> Betas:
    zero_snr = bool(found.get("rescale_betas_zero_snr"))
    if found.trained_betas is not None:
        trained = tuple(float(beta) for beta in found.trained_betas)
        return Betas(kind="trained", steps=len(trained), trained=trained, zero_snr=zero_snr)
    if found.beta_schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise ValueError(
            f"this {name} has beta_schedule {found.beta_schedule!r}; fewstep has linear, scaled_linear, squaredcos_cap_v2 and "
            "trained_betas"
        )
    numbers = {"start": found.beta_start, "end": found.beta_end} if found.beta_schedule != "squaredcos_cap_v2" else {}
    return Betas(kind=found.beta_schedule, steps=found.num_train_timesteps, zero_snr=zero_snr, **numbers)


def _flow(name: str, found: Any, mu: float | None) -> Flow:
    plain: dict[str, Any] = {"num_train_timesteps": 1000}
    if KINDS[name] != "flow":
        plain |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for key, value in plain.items():
        if found.get(key, value) != value:
            raise ValueError(f"this {name} of a flow has {key} {found[key]!r}; of flows, fewstep drives {value!r}")
    shift = found.get("shift", found.get("flow_shift", 1.0))
    if found.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError(f"this {name} shifts its levels by the number of image tokens, which is not known here")
        shift = mu if found.get("time_shift_type") == "linear" else exp(mu)
    return Flow(shift=shift)


def dynamic_mu(config: Mapping[str, Any], tokens: int) -> float | None:
    """mu of a flow whose shift depends on the number of image tokens, as diffusers' pipelines say; None for another.

    Args:
        config: of a scheduler.
        tokens: of an image, as the network counts them.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}
    first, last, low, high = (config.get(key, value) for key, value in defaults.items())
    return float(low + (tokens - first) * (high - low) / (last - first))


def with_steps(scheduler: Any, steps: int, mu: float | None = None, sigmas: Callable[[int], list[float]] | None = None) -> Any:
    """The scheduler, its timesteps set.

    Args:
        scheduler: of diffusers; it is changed.
        steps: 1 to MAX_STEPS.
        mu: of a scheduler that shifts by the number of image tokens.
        sigmas: levels for so many steps, where not the scheduler's own.

    Raises:
        ValueError: for a number of steps that it does not take.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"a plan takes 1 to {MAX_STEPS} steps, got {steps}")
    given: dict[str, Any] = {"mu": mu} if mu is not None and scheduler.config.get("use_dynamic_shifting") else {}
    given |= {"sigmas": sigmas(steps)} if sigmas and not scheduler.config.get("use_flow_sigmas") else {}
    try:
        scheduler.set_timesteps(steps, **given)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{type(scheduler).__name__} takes no {steps} steps ({reason}); choose another number") from None
    return scheduler


def scheduler_plan(
    scheduler: Any,
    parametrisation: Parametrisation,
    steps: int,
    guidance: Guidance = PLAIN,
    *,
    mu: float | None = None,
    sigmas: Callable[[int], list[float]] | None = None,
) -> Plan:
    """A scheduler's plan for the network that it is configured for.

    Args:
        scheduler: of diffusers; its timesteps are set here.
        parametrisation: of the network, as `parametrisation_of` has it.
        steps: as a pipeline counts them; a plan may have more rows.
        guidance: by noise level.
        mu, sigmas: as for `with_steps`.

    Raises:
        ValueError: for steps that it does not take, or a scheduler that is no table.
    """
    return trace(with_steps(scheduler, steps, mu, sigmas), parametrisation, guidance)[0]


def plan_name(scheduler: Any, steps: int, guidance: Guidance = PLAIN) -> str:
    """What a scheduler's plan is called: pndm20, dpmsolver_karras6_w7.5.

    Args:
        scheduler: of diffusers.
        steps: as a pipeline counts them.
        guidance: of the plan; none leaves the name as it is.
    """
    plain = re.sub("Scheduler|Discrete|Multistep", "", type(scheduler).__name__)
    words = [re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", plain).lower()]
    words += [spacing for spacing in SPACINGS if scheduler.config.get(f"use_{spacing}_sigmas")]
    words += ["sde"] if "sde" in str(scheduler.config.get("algorithm_type")) else []
    return f"{'_'.join(words)}{steps}{guidance.suffix}"


def plan_for(
    network: Parametrisation,
    name: str,
    steps: int,
    guidance: Guidance = PLAIN,
    *,
    own: Mapping[str, Any] | None = None,
    mu: float | None = None,
    config: Mapping[str, Any] | None = None,
    sigmas: Callable[[int], list[float]] | None = None,
) -> tuple[Plan, str]:
    """The plan of the scheduler `name` for a network, and what it is to be called.

    Args:
        network: its parametrisation.
        name: a class of diffusers.
        steps: as a pipeline counts them.
        guidance: by noise level.
        own: the configuration of the scheduler that the network came with, whose settings it keeps.
        mu: of a scheduler that shifts by the number of image tokens.
        config: settings to change.
        sigmas: the levels that its pipeline tells its own scheduler, where it does.

    Raises:
        ValueError: for a scheduler of networks of another kind, settings that say something else of the network, or a scheduler
            that is no table.
    """
    if name not in KINDS:
        raise ValueError(f"scheduler is one of {', '.join(KINDS)}, got {name!r}")
    view, wanted = _view(network, name)
    settings: dict[str, Any] = dict(own or {}) if isinstance(network, Flow) <= (name == (own or {}).get("_class_name")) else {}
    settings |= {key: value for key, value in wanted.items() if key not in settings} | dict(config or {})
    settings["_class_name"] = name
    scheduler = make_scheduler(settings)
    says = parametrisation_of(settings, mu=mu)
    if says != view:
        raise ValueError(
            f"this {name} is set up for another network than this one, {_apart(says, view)}; leave out of its settings what "
            "says how a network was trained (prediction_type, betas, shift, sigma_data), and it takes this network's"
        )
    plan = scheduler_plan(
        scheduler, view, steps, guidance, mu=mu, sigmas=sigmas if name == (own or {}).get("_class_name") else None
    )
    return (plan if view == network else moved(plan, network)), plan_name(scheduler, steps, guidance)


def _apart(one: Parametrisation, other: Parametrisation) -> str:
    """What two parametrisations differ in, as few words."""
    if one.kind != other.kind:
        return f"of {one.kind} in place of {other.kind}"
    first, second = (p.betas if isinstance(p, Eps | Velocity) else p for p in (one, other))
    differ = {key: (value, getattr(second, key)) for key, value in first if value != getattr(second, key)}
    shown = [f"{key} {a!r} in place of {b!r}" for key, (a, b) in differ.items() if not isinstance(a, tuple)]
    return ", ".join(shown) or "with other trained_betas"


def _view(network: Parametrisation, name: str) -> tuple[Parametrisation, dict[str, Any]]:
    """How a scheduler sees a network, and the settings that say so."""
    made = getattr(importlib.import_module("diffusers"), name)
    kind = KINDS[name]
    if isinstance(network, Flow):
        if kind == "flow":
            return network, {"shift": network.shift}
        if "use_flow_sigmas" in keys_of(made):
            return network, {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": network.shift}
    elif isinstance(network, Edm):
        if kind == "edm":
            return Edm(sigma_data=network.sigma_data, time_scale=0.25), {"sigma_data": network.sigma_data}
        if kind == "vp":
            betas = _levels_as_betas(network)
            return Eps(betas=betas), {"trained_betas": list(betas.trained), "num_train_timesteps": betas.steps}
    elif kind == "vp":
        return network, _settings(network)
    raise ValueError(f"a {name} samples other networks than this one, of {network.kind}")


def _settings(network: Eps | Velocity) -> dict[str, Any]:
    betas = network.betas
    settings: dict[str, Any] = {"prediction_type": "epsilon" if network.kind == "eps" else "v_prediction"}
    settings |= {"num_train_timesteps": betas.steps} | ({"rescale_betas_zero_snr": True} if betas.zero_snr else {})
    if betas.kind == "trained":
        return settings | {"trained_betas": list(betas.trained)}
    return settings | {"beta_schedule": betas.kind, "beta_start": betas.start, "beta_end": betas.end}


def _levels_as_betas(network: Edm) -> Betas:
    """The noise levels of an EDM network as the discrete schedule that diffusers' schedulers of VP networks want."""
    levels = network.grid(LEVELS).levels[:-1][::-1]
    signal = 1 / (1 + levels**2)
    return Betas(kind="trained", steps=LEVELS, trained=tuple(1 - signal / np.append(1.0, signal[:-1])))

"""The proof of an import: diffusers' own pipeline, and the plan that is to be the bundle's, end in the same state.

Theirs: the pipeline's class around the checkpoint's network, its scheduler as configured, its own call of the network. Ours:
the plan around D. The same noise goes into both, that of schedulers that draw some included. Where the pipeline's class cannot
be made, because it needs a package that is not installed or is none of those here, its scheduler walks around the network.

Few steps must agree. Many may make a network so sensitive that the pipeline itself ends elsewhere when its noise changes in the
last digit: then that is how near both must be.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.artifact.signature import NEGATIVE, Input
from fewstep.models.accounting import keys_of
from fewstep.models.denoiser import Denoiser
from fewstep.models.families import FAMILIES
from fewstep.models.schedulers import with_steps
from fewstep.models.tracing import HandedNoise, steps_of, trace
from fewstep.sampling.guidance import Guidance, guided, mix
from fewstep.sampling.plan import Plan, sample

__all__ = ["PIPELINES", "Case", "Proof", "Proven", "prove"]

TOLERANCE = 1e-4  # of the largest number of the last state: both loops round differently
DIGIT = 2.0**-23  # of a number of fp32: its last digit
SHAKEN = 4.0  # times what a pipeline's end moves by when its noise changes in the last digit: two loops round in every step
SECONDS = 600.0  # that the proof of one number of steps may take; what it would take is measured, and said


PIPELINES = {name: pipeline for family in FAMILIES.values() for name, pipeline in family.pipelines.items()}


class Case(NamedTuple):
    """A number of steps, and the guidance scale."""

    steps: int
    guidance: float = 1.0


class Proven(NamedTuple):
    """How far apart both ended, and the largest number there. own: how far the pipeline ended from itself with noise that was
    changed in the last digit, where they were further apart than TOLERANCE.
    """

    steps: int
    guidance: float
    max_error: float
    scale: float
    own: float | None = None


@dataclass(frozen=True)
class Proof:
    """How near both end, case by case.

    Args:
        against: what the plans were compared with, in words.
        cases: what was compared.
        left_out: steps that would have taken too long, in sentences.
    """

    against: str
    cases: list[Proven]
    left_out: list[str]

    def dump(self) -> dict[str, Any]:
        """For a manifest."""
        cases = [case._asdict() for case in self.cases]
        return {
            "against": self.against,
            "cases": cases,
            "left_out": self.left_out,
            "max_error": self.max_error,
            "scale": self.scale,
        }

    @property
    def worst(self) -> Proven:
        """The case with the largest difference."""
        return max(self.cases, key=lambda case: case.max_error / case.scale)

    @property
    def max_error(self) -> float:
        """Of the worst case."""
        return self.worst.max_error

    @property
    def scale(self) -> float:
        """Of the worst case."""
        return self.worst.scale


@dataclass(frozen=True)
class _Subject:
    """What is compared: a network, its scheduler without steps, the pipeline's class and autoencoder, shapes.

    shaken: what share of itself is added to the noise.
    """

    denoiser: Denoiser
    scheduler: Any
    mu: float | None
    specs: Sequence[Input]
    shape: tuple[int, ...]
    pipeline: str | None
    autoencoder: Any
    shaken: float = 0.0

    def scheduled(self, steps: int) -> Any:
        """Its scheduler, with timesteps as its pipeline sets them."""
        told = PIPELINES[self.pipeline].sigmas if self.pipeline in PIPELINES else None
        return with_steps(self.scheduler, steps, self.mu, told)

    def inputs(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A condition, and one that means "none"."""
        generator = torch.Generator().manual_seed(0)
        given, null = (tuple(self._drawn(each, generator) for each in self.specs) for _ in range(2))
        fixed = zip(self.specs, null, strict=True)
        return given, tuple(n if c.null_constant is None else torch.as_tensor(c.null_constant)[None] for c, n in fixed)

    def _drawn(self, each: Input, generator: torch.Generator) -> Tensor:
        """The first of finitely many values, or random numbers."""
        if each.choices is not None:
            return torch.zeros(1, dtype=torch.int64)
        return torch.randn(1, *each.tensor.shape, generator=generator)

    def noise(self, count: int) -> Tensor:
        """The noise that is drawn as the how many-th; 0 is the start."""
        return torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(count)) * (1 + self.shaken)


def prove(
    denoiser: Denoiser,
    scheduler: Any,
    cases: Sequence[Case],
    *,
    inputs: Sequence[Input],
    shape: tuple[int, ...],
    mu: float | None = None,
    pipeline: str | None = None,
    autoencoder: Any = None,
) -> Proof:
    """Compare last states for every case.

    Args:
        denoiser: around the checkpoint's network.
        scheduler: of diffusers, made from the checkpoint's configuration; its timesteps are set here.
        cases: those of few steps first, by which the time of the others is known.
        inputs: of the signature.
        shape: of a state, (C, ...).
        mu: of a scheduler that shifts by the number of image tokens.
        pipeline: the name of its class, where the checkpoint says so.
        autoencoder: of a latent model.

    Raises:
        ValueError: where they differ, or where the pipeline does not run.
    """
    subject = _Subject(denoiser, scheduler, mu, inputs, shape, pipeline, autoencoder)
    against = _against(subject)
    proven: list[Proven] = []
    left_out: list[str] = []
    seconds = 0.0  # of one call, as the shorter case took them
    for case in cases:
        plan, drawn = trace(subject.scheduled(case.steps), denoiser.parametrisation, Guidance(case.guidance))
        if seconds * 2 * plan.nfe > SECONDS:
            left_out.append(f"{case.steps} steps, which would take about {seconds * 2 * plan.nfe / 60:.0f} minutes here")
            continue
        begun = time.perf_counter()
        error, scale = _apart(subject, case, plan, drawn)
        seconds = (time.perf_counter() - begun) / (2 * plan.nfe)
        own = _moved(subject, case) if error > TOLERANCE * scale and proven else None
        if not error <= max(TOLERANCE * scale, SHAKEN * (own or 0.0)):
            raise ValueError(
                f"{case.steps} steps end elsewhere than with {against} ({error:.2g} apart, of {scale:.2g}); this checkpoint "
                "has something that fewstep does not know of, so it is not imported"
            )
        proven.append(Proven(case.steps, case.guidance, error, scale, own))
    return Proof(against, proven, left_out)


def _apart(subject: _Subject, case: Case, plan: Plan, drawn: Sequence[int]) -> tuple[float, float]:
    """The largest difference of both last states, and the largest number of theirs."""
    given, null = subject.inputs()
    with torch.no_grad():
        theirs = _theirs(subject)(case)
        noise = [subject.noise(1 + count) for count in drawn]
        ours = sample(guided(subject.denoiser, given, null), plan.begin(subject.noise(0)), plan, noise)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


def _moved(subject: _Subject, case: Case) -> float:
    """How far a pipeline ends from itself when its noise changes in the last digit."""
    with torch.no_grad():
        return float((_theirs(subject)(case) - _theirs(replace(subject, shaken=DIGIT))(case)).abs().max())


def _against(subject: _Subject) -> str:
    """What the last states are compared with, in words."""
    kind = type(subject.scheduler).__name__
    if _made(subject) is not None:
        return str(subject.pipeline)
    itself = f"; for {subject.pipeline} itself: pip install transformers" if _is_known(subject) else ""
    return f"{kind} around the network (no pipeline of diffusers ran, so the family's own call is not checked{itself})"


def _is_known(subject: _Subject) -> bool:
    """Whether the pipeline's class is one of those here, and both it and the network get what they need."""
    unconditional = subject.pipeline in ("DDPMPipeline", "DDIMPipeline")
    decodes = subject.pipeline == "DiTPipeline"  # whatever output it is asked for
    fits = (not subject.specs or not unconditional) and (subject.autoencoder is not None or not decodes)
    return subject.pipeline in PIPELINES and fits


def _theirs(subject: _Subject) -> Callable[[Case], Tensor]:
    """What gives diffusers' last state for a case."""
    pipeline = _made(subject)
    if pipeline is None:
        return functools.partial(_around_the_network, subject)
    return functools.partial(_run, pipeline, subject)


def _made(subject: _Subject) -> Any:
    """The pipeline without its text encoders; None where it is none of those here, or a package is missing."""
    if not _is_known(subject):
        return None
    made = getattr(importlib.import_module("diffusers"), str(subject.pipeline))
    parts = {"unet": subject.denoiser.net, "transformer": subject.denoiser.net, "vae": subject.autoencoder}
    parts |= {"scheduler": subject.scheduler, "requires_safety_checker": False, "add_watermarker": False}
    try:
        pipeline = made(
            **{key: parts.get(key) for key in keys_of(made) if key not in ("id2label", "force_zeros_for_empty_prompt")}
        )
    except ImportError:
        return None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _run(pipeline: Any, subject: _Subject, case: Case) -> Tensor:
    """The last state of a pipeline, before it is decoded or cut to the range of images."""
    ends: list[Tensor] = []
    step = pipeline.scheduler.step

    @functools.wraps(step)  # pipelines look at what it takes
    def kept(*args: Any, **kwargs: Any) -> Any:
        made = step(*args, **kwargs)
        ends.append(made[0] if isinstance(made, tuple) else made.prev_sample)
        return made

    pipeline.scheduler.step = kept
    try:
        with HandedNoise((1, *subject.shape), subject.noise):
            pipeline(
                **_sized(pipeline, subject),
                **{"num_inference_steps": case.steps, "output_type": "latent"} | _asked(subject, case),
            )
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"diffusers' own {subject.pipeline} does not run with these parts ({reason})") from error
    finally:
        pipeline.scheduler.step = step
    return _as_state(ends[-1][:1], subject)


def _sized(pipeline: Any, subject: _Subject) -> dict[str, int]:
    """The size of images, for pipelines that do not read it from the network."""
    if "height" not in inspect.signature(type(pipeline).__call__).parameters:
        return {}
    factor = pipeline.vae_scale_factor
    return {"height": subject.shape[-2] * factor, "width": subject.shape[-1] * factor}


def _as_state(end: Tensor, subject: _Subject) -> Tensor:
    """A pipeline's last state (1, C, ...), unfolded where the pipeline packs patches into tokens (1, n, C patch^2)."""
    if end.ndim != 3:
        return end
    patch = subject.denoiser.patch
    folded = end.transpose(1, 2).reshape(1, -1, *(side // patch for side in subject.shape[1:]))
    return functional.pixel_shuffle(folded, patch)


def _asked(subject: _Subject, case: Case) -> dict[str, Any]:
    """What a pipeline is called with: embeddings in place of prompts."""
    given, null = subject.inputs()
    scale = subject.denoiser.constants.get("guidance_scale")
    asked: dict[str, Any] = {"guidance_scale": case.guidance if scale is None else scale}
    if subject.pipeline == "DiTPipeline":
        return asked | {"class_labels": given[0].tolist(), "output_type": "pt"}
    if not subject.specs:
        return {"output_type": "np"}
    names = [each.name for each in subject.specs]
    asked |= dict(zip(names, given, strict=True))
    if scale is None:
        asked |= {NEGATIVE + name: tensor for name, tensor in zip(names, null, strict=True)}
    tensors = {key: value for key, value in asked.items() if isinstance(value, Tensor)}
    return asked | dict(PIPELINES[str(subject.pipeline)].more(tensors))


def _around_the_network(subject: _Subject, case: Case) -> Tensor:
    """The loop of diffusers' pipelines, around the network itself."""
    scheduler, denoiser = subject.scheduled(case.steps), subject.denoiser
    (given, null), start = subject.inputs(), subject.noise(0)

    def network(x: Tensor, t: Tensor) -> Tensor:
        evaluate = functools.partial(denoiser.evaluate, x, t.reshape(-1).float())
        out = evaluate(*given)
        return out if case.guidance == 1 else mix(out, evaluate(*null), case.guidance)

    with HandedNoise((1, *subject.shape), lambda count: subject.noise(1 + count)):
        *_, end = steps_of(scheduler, start, network)
    return end

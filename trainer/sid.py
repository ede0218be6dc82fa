"""Distil a few-step generator: score identity distillation (SiD).

Zhou et al. 2024 (arXiv 2404.04057), several steps as in arXiv 2505.12674, a few real samples as in arXiv 2410.14919. Three
networks start as copies of the teacher: the generator G (or as a generator of more steps), the fake score F that learns to
denoise what G makes, and the teacher T, frozen. Without real samples, none is read.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.card import inherited, write_card
from fewstep.artifact.digests import component_digest
from fewstep.artifact.manifest import Manifest, PlanEntry, check_name
from fewstep.artifact.records import Distilled, Fitted
from fewstep.data import Samples
from fewstep.data.conditions import Given
from fewstep.data.inputs import Arrays
from fewstep.models.decoder import load_decoder
from fewstep.models.denoiser import Denoiser, load_network, save_network
from fewstep.sampling.parametrisation import Edm, Flow, Parametrisation
from fewstep.sampling.plan import Plan, trajectory
from fewstep.sampling.schedule import Grid, flow, uniform
from fewstep.sampling.solvers import few_step
from fewstep.system.progress import Track, silent
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import samples_of
from fewstep.trainer.configs import SidConfig, Weights
from fewstep.trainer.draws import Draws
from fewstep.trainer.levels import Space, space_of
from fewstep.trainer.losses import sid_loss, sid_scale
from fewstep.trainer.run import Material, Run, Validate, adam
from fewstep.trainer.scores import FakeScore, discriminator_loss, evaluate, generator_loss
from fewstep.trainer.shards import prepared

__all__ = ["Distilling", "SidRun", "distill", "generator_grid", "resolved"]

VP_START = 0.625  # of the table's times, where few steps begin
DROPPED = 0.1  # conditions that LSG withholds from F while it learns


def distill(
    bundle: Bundle,
    name: str,
    config: SidConfig,
    *,
    teacher: str = "teacher",
    samples: Samples | None = None,
    validate: Validate | None = None,
    arrays: Arrays | None = None,
    license: str | None = None,
    validated_on: str | None = None,
    log: Path | None = None,
    track: Track = silent,
) -> Bundle:
    """Distil `teacher` into the network and plan `name` of the bundle.

    Each iteration draws one exit step for all and matches its output. Killed and started again with the same arguments, a run
    goes on from its last checkpoint to the same weights, bit for bit.

    Args:
        bundle: with the teacher.
        name: of the generator and its plan.
        teacher: a network of the bundle.
        samples: real ones, for the adversarial term, from fewstep.trainer.batches.open_examples.
        validate: a metric, lower is better, of the averaged generator and its plan, such as that of evaluation/validate.py; the
            weights that were best by it are kept, else the last.
        arrays: what samples are made from, where that cannot be drawn at random.
        license: of what goes in, in words, for the card.
        validated_on: what `validate` looks at, in words, for the card.
        log: a directory for curves and sheets of samples, see fewstep.trainer.watch.

    Returns:
        The bundle as it is then.

    Raises:
        ValueError: for inputs that cannot be drawn at random, samples that are not the bundle's kind, or a run that does not
            stay finite.
    """
    check_name(name)
    given = Distilling(teacher, samples, validate, arrays, license, validated_on, log)
    with checkpoint.alone(checkpoint.checkpoint_path(bundle.root, name)):
        SidRun(bundle, name, config, given).go(track)
    return Bundle.load(bundle.root)


def resolved(bundle: Bundle, config: SidConfig, teacher: str) -> SidConfig:
    """Settings that say what G starts as, and in how many steps it makes a sample.

    Args:
        bundle: whose plans the settings may name.
        config: whose steps and start may be None.
        teacher: by name.
    """
    steps = config.steps or (bundle.plan(config.plan).rows if config.plan else 1)
    return replace(config, steps=steps, start=config.start or teacher)


@dataclass(frozen=True)
class Distilling:
    """What a run is given besides bundle, name and settings, see distill.

    Args:
        teacher, samples, validate, arrays, license, validated_on, log: as for `distill`.
    """

    teacher: str = "teacher"
    samples: Samples | None = None
    validate: Validate | None = None
    arrays: Arrays | None = None
    license: str | None = None
    validated_on: str | None = None
    log: Path | None = None


class SidRun(Run):
    """One distillation: its networks, and what an iteration does."""

    config: SidConfig
    keeps_best = True
    doing = "distil"
    way_out = "lower --lr or --alpha"

    def __init__(self, bundle: Bundle, name: str, config: SidConfig, given: Distilling) -> None:
        manifest, teacher = bundle.manifest, given.teacher
        config = resolved(bundle, config, teacher)
        self.start = start = str(config.start)
        if name in (teacher, start):
            raise ValueError(f"a generator cannot take the place of {name!r}, which it is made from; choose another name")
        nothing = manifest.signature.inputs and not manifest.signature.guidable
        if nothing and (config.mode != "teacher" or config.guidance != 1):
            raise ValueError(f"no input of {bundle.root.name} means none, so its teacher cannot be guided; give --guidance 1")
        samples = samples_of(bundle, given.samples) if given.samples else None
        decoder = (lambda: load_decoder(bundle)) if manifest.decoder else None
        arrays = given.arrays if given.arrays or not samples else samples.arrays or None
        material = Material(manifest.signature, manifest.state, samples, arrays, given.validate, decoder, given.log)
        super().__init__(bundle.root, name, config, material)
        self.bundle, self.given = bundle, given
        self.teacher = load_network(bundle, teacher).requires_grad_(False)
        self.generator = load_network(bundle, start) if start != teacher else copy.deepcopy(self.teacher)
        self.generator.requires_grad_(True)
        self.fake = FakeScore(copy.deepcopy(self.teacher).requires_grad_(True))
        ema = copy.deepcopy(self.generator).requires_grad_(False)
        best = copy.deepcopy(ema)
        self.placed(self.teacher, self.generator, self.fake, ema, best)
        self.plan, numbers = _plan_of(bundle, config, self.teacher)
        g, f = (adam(net, config.rate(), (0.0, 0.999)) for net in (self.generator, self.fake))
        parts: checkpoint.Parts = {
            "generator": self.generator,
            "fake": self.fake,
            "ema": ema,
            "best": best,
            "g": g,
            "f": f,
        }
        about: dict[str, Any] = {"teacher": teacher, "teacher_sha256": component_digest(manifest, teacher)}
        about |= {"start_sha256": component_digest(manifest, start), "plan_sha256": numbers}
        learns = {"generator": self.generator, "fake": self.fake.denoiser}
        self.begin(parts, average=ema, learns=learns, validated=given.validate is not None, **about)
        # Prepared copies share the weights; they are called only where the gradient goes to those weights.
        self.g_model, self.f_model = (prepared(self.accelerator, net) for net in (self.generator, self.fake))
        self.g_optimizer, self.f_optimizer = self.accelerator.prepare(g, f)
        self.space: Space = space_of(self.teacher.parametrisation, mean=config.noise_mean, std=config.noise_std)
        self.weights, self.interval = Weights.of(config.mode, config.guidance), config.interval()

    def update(self, step: int) -> Mapping[str, Tensor | float]:
        """One update of F, and one of G but for the warm-up."""
        config, parts = self.config, self.draws(step)
        uniform = config.match == "uniform" and config.plan is None
        rows = self.plan.rows
        drawn = [part.one(rows) if uniform else rows - 1 for part in parts]
        exit_step = drawn[0]  # the same in all
        adversarial = self.loader is not None and step >= config.adversarial_from * config.iterations
        of_fake = [self._fake_loss(part, exit_step, adversarial) for part in self.accumulated(self.f_model, parts)]
        losses: dict[str, Tensor | float] = {"fake_loss": torch.stack(of_fake).mean()}
        _update(self.f_optimizer, self.fake)
        if step >= config.warmup * config.iterations:
            self.fake.requires_grad_(False)
            every = self.accumulated(self.g_model, parts)
            losses["generator_loss"] = torch.stack([self._generator_loss(p, exit_step, adversarial) for p in every]).mean()
            self.fake.requires_grad_(True)
            _update(self.g_optimizer, self.generator)
            self.move_average(self.generator, step)
        return losses

    def _fake_loss(self, draws: Draws, exit_step: int, adversarial: bool) -> Tensor:
        """F denoises what G makes; with real samples it also tells both apart, at equal noise, level and condition."""
        if adversarial and self.loader:
            real, labels = self.loader(draws)
            condition = self.conditions.of(labels)
        else:
            real, condition = None, self.conditions.random(draws.integers)
        noise = self._noise(draws)
        with torch.no_grad(), self.accelerator.autocast():
            made = self._make(self.generator, exit_step, noise, condition)
        levels, added = self.space.at(self.space.base(draws)), self.normal(draws)
        null = self.conditions.null(condition)
        if self.config.mode == "lsg":
            condition = self.conditions.dropped(condition, DROPPED, draws.uniform)
        seen = [levels.noised(batch, added) for batch in (made, real) if batch is not None]
        times = len(seen)
        denoised, logits = evaluate(
            self.f_model,
            torch.cat(seen),
            levels.sigma.repeat(times),
            tuple(torch.cat([c] * times) for c in condition),
            tuple(torch.cat([n] * times) for n in null),
            self.weights.train,
        )
        weight = self.space.weight(levels)
        loss: Tensor = weight * (denoised[: len(made)] - made).square().flatten(1).sum(1)
        if real is not None:
            fake_logits, real_logits = logits.chunk(2)
            loss = loss + weight * discriminator_loss(real_logits, fake_logits)
        return self.backward(loss)

    def _generator_loss(self, draws: Draws, exit_step: int, adversarial: bool) -> Tensor:
        """What G makes is to look to F as it looks to T."""
        condition = self.conditions.random(draws.integers)
        null, noise = self.conditions.null(condition), self._noise(draws)
        with self.accelerator.autocast():
            made = self._make(self.g_model, exit_step, noise, condition)
        low, high = self.space.scored
        levels = self.space.at(low + (high - low) * draws.uniform())
        noised = levels.noised(made, self.normal(draws))
        guided: float | Tensor = self.interval.scale
        if guided != 1:
            above = levels.sigma / levels.alpha
            guided = torch.where((above > self.interval.lo) & (above <= self.interval.hi), guided, 1.0)
        with self.accelerator.autocast():
            target = evaluate(self.teacher, noised, levels.sigma, condition, null, guided)
            estimate, logits = evaluate(self.fake, noised, levels.sigma, condition, null, self.weights.fake)
        loss = 100 * sid_loss(made, target, estimate, alpha=self.config.alpha)
        if adversarial:
            size = 0.01 * made[0].numel()
            loss = 0.5 * loss + 0.5 * size * generator_loss(logits) / sid_scale(made, target)
        return self.backward(loss)

    def _make(self, model: nn.Module, exit_step: int, noise: Sequence[Tensor], condition: Given) -> Tensor:
        """What G makes when it leaves its plan after a row: the estimate there or, after the last, the plan's end.

        The last evaluation alone goes through `model`, which may have gradients.
        """
        net: nn.Module = self.generator
        begin = self.plan.begin(noise[0])
        walk = trajectory(lambda x, sigma, **told: net(x, sigma, *condition, **told), begin, self.plan, noise[1:])
        with torch.no_grad():
            for _ in range(exit_step):
                next(walk)
        net = model
        step = next(walk)
        made: Tensor = step.x if exit_step == self.plan.rows - 1 else step.denoised
        return made.float()

    def _noise(self, draws: Draws) -> list[Tensor]:
        """One unit-normal (B, C, ...) for each draw of the plan."""
        return [self.normal(draws) for _ in range(self.plan.draws)]

    def keep(self, made: Denoiser) -> None:
        """The network, its plan and where it is from into the bundle."""
        steps = self.plan.rows
        with Bundle.load(self.bundle.root).edit() as draft:
            save_network(draft, self.name, made)
            solver = f"SiD generator, {steps} step{'s' if steps > 1 else ''}"
            draft.manifest.plans[self.name] = PlanEntry.of(self.plan, denoiser=self.name, solver=solver)
            draft.manifest.default = self.name
            draft.manifest.records.components[self.name] = self._record(draft.manifest)
            write_card(draft)

    def _record(self, manifest: Manifest) -> Distilled:
        settings, given = dict(self.settings), self.given
        names = ("mixed_precision", "data", "data_sha256", "samples", "validated", "plan_sha256")
        about = {name: settings.pop(name) for name in names if name in settings}
        about |= {name: settings.pop(name) for name in ("teacher", "teacher_sha256", "start", "start_sha256")}
        fitted = manifest.records.plans.get(self.config.plan or "")
        return Distilled(
            **about,
            settings=settings,
            plan_data=fitted.data if isinstance(fitted, Fitted) else None,
            validated_on=given.validated_on,
            retries=self.progress.retries,
            metrics=self.metrics(),
            license=given.license,
            inherited_licenses=inherited(manifest, self.start, given.teacher),
        )


def _update(optimizer: Any, net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.grad is not None:
            torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)
    optimizer.step()
    optimizer.zero_grad()


def _plan_of(bundle: Bundle, config: SidConfig, teacher: Denoiser) -> tuple[Plan, str | None]:
    """What G walks and, for a sampler of the bundle, the hash of its numbers."""
    if config.plan is None:
        return few_step(generator_grid(teacher.parametrisation, config.steps or 1, config.sigma_start)), None
    plan = bundle.plan(config.plan)
    if plan.guided or plan.rows != config.steps:
        calls = f"{plan.rows} steps{', guided' if plan.guided else ''}"
        raise ValueError(
            f"a generator of {config.steps} steps begins as a sampler of as many, not guided; {config.plan!r} has {calls}"
        )
    numbers = bundle.manifest.plans[config.plan].model_dump_json(exclude={"solver"})
    return plan, hashlib.sha256(numbers.encode()).hexdigest()


def generator_grid(parametrisation: Parametrisation, steps: int, sigma_start: float = 2.5) -> Grid:
    """Where a generator of K steps evaluates its network, k = 0 .. K - 1, and clean data.

    sigma_start (K - k) / K for EDM, the time 0.625 T (K - k) / K of the VP table, (K - k) / K for a flow.

    Args:
        parametrisation: of the network.
        steps: K.
        sigma_start: of EDM alone.
    """
    if isinstance(parametrisation, Edm):
        return uniform(steps, sigma_start)
    if isinstance(parametrisation, Flow):
        return flow(steps)
    signal = parametrisation.betas.signal()
    times = (VP_START * signal.size * (1 - np.arange(steps) / steps)).astype(int)
    abar = np.append(signal[times], 1.0)
    return Grid(np.sqrt(abar), np.sqrt(1 - abar))

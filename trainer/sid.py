"""Distil a few-step generator: score identity distillation (SiD).

Zhou et al. 2024 (arXiv 2404.04057), several steps as in arXiv 2505.12674, a few real images as in arXiv 2410.14919. Three
networks start as copies of the teacher: the generator G (or as a generator of more steps), the fake score F that learns to
denoise what G makes, and the teacher T, frozen. Without real images, none is read.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.card import inherited, write_card
from fewstep.artifact.manifest import PlanEntry, check_name
from fewstep.data import Images, numbered_like
from fewstep.data.latents import Latents
from fewstep.models.decoder import load_decoder
from fewstep.models.denoiser import Denoiser, load_network, on_meta, save_network
from fewstep.sampling.plan import Plan, trajectory
from fewstep.sampling.solvers import few_step
from fewstep.system.progress import Track, silent
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import Loader
from fewstep.trainer.conditions import Conditions
from fewstep.trainer.draws import Draws, accumulated, refuse_parts
from fewstep.trainer.ema import average_into
from fewstep.trainer.levels import Space, space_of
from fewstep.trainer.losses import sid_loss, sid_scale
from fewstep.trainer.scores import FakeScore, Weights, discriminator_loss, evaluate, generator_loss
from fewstep.trainer.shards import gathered, prepared, shard
from fewstep.trainer.sid_config import SidConfig, generator_grid
from fewstep.trainer.watch import Watch, accelerator_for, scale_as, scaling

__all__ = ["distill"]

MAX_RETRIES = 3
DROPPED = 0.1  # conditions that LSG withholds from F while it learns


def distill(
    bundle: Bundle,
    name: str,
    config: SidConfig,
    *,
    teacher: str = "teacher",
    images: Images | None = None,
    validate: Callable[[Denoiser, Plan], float] | None = None,
    embeddings: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
    log: Path | None = None,
    track: Track = silent,
) -> Bundle:
    """Distil `teacher` into the network and plan `name` of the bundle.

    Returns the bundle as it is then. images: real ones, for the adversarial term, from fewstep.trainer.batches.open_examples.
    validate: a metric, lower is better, of the averaged generator and its plan, such as that of evaluation/validate.py; the
    weights that were best by it are kept, else the last. embeddings: of prompts to draw from, where the network needs some.
    provenance: what else the bundle and its card are to say of the network, such as its license and validated_on.
    log: a directory for curves and sheets of samples, see fewstep.trainer.watch.

    Each iteration draws one exit step for all and matches its output. Killed and started again with the same arguments, a run
    goes on from its last checkpoint to the same weights, bit for bit; where weights stop being finite, it goes back there by
    itself and draws other numbers.

    Raises ValueError for a condition that cannot be drawn at random, images that are not the bundle's kind, or a run that does
    not stay finite.
    """
    check_name(name)
    if config.patience and validate is None:
        raise ValueError("patience counts looks at a metric, and there is none; give images to --validate")
    with checkpoint.alone(checkpoint.checkpoint_path(bundle.root, name)):
        return _Run(bundle, name, config, teacher, images, validate, embeddings, provenance, log).go(track)


class _Run:
    """One distillation: its networks, and what an iteration does."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        config: SidConfig,
        teacher: str,
        images: Images | None,
        validate: Callable[[Denoiser, Plan], float] | None,
        embeddings: Mapping[str, Tensor] | None,
        provenance: Mapping[str, Any] | None,
        log: Path | None,
    ) -> None:
        if name in (teacher, config.start):
            raise ValueError(f"a generator cannot take the place of {name!r}, which it is made from; choose another name")
        if not bundle.manifest.condition.null and (config.mode != "teacher" or config.guidance != 1):
            raise ValueError(f"no label of {bundle.root.name} means none, so its teacher cannot be guided; give --guidance 1")
        images = _like(bundle, images)
        self.bundle, self.name, self.config, self.validate = bundle, name, config, validate
        self.loader = Loader(images) if images else None
        self.provenance = dict(provenance or {})
        self.saved = checkpoint.checkpoint_path(bundle.root, name)
        self.accelerator, self.chosen = accelerator_for(config.precision, log, saved=self.saved, what=f"distil {name}")
        refuse_parts(config.batch, config.accumulate * self.accelerator.num_processes)
        device = self.accelerator.device
        self.conditions = Conditions(bundle.manifest.condition, embeddings, device)
        if images:
            self.conditions.check(images)
        self.teacher = load_network(bundle, teacher).requires_grad_(False)
        self.generator = load_network(bundle, config.start) if config.start != teacher else copy.deepcopy(self.teacher)
        self.generator.requires_grad_(True)
        self.fake = FakeScore(copy.deepcopy(self.teacher).requires_grad_(True))
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.best, self.blank = copy.deepcopy(self.ema), on_meta(self.ema)
        for net in (self.teacher, self.generator, self.fake, self.ema, self.best):
            shard(self.accelerator, net) if config.shard else net.to(device)
        optimizers = [
            torch.optim.Adam(net.parameters(), lr=config.rate(), betas=(0.0, 0.999), fused=True)
            for net in (self.generator, self.fake)
        ]
        self.parts: checkpoint.Parts = {
            "generator": self.generator,
            "fake": self.fake,
            "ema": self.ema,
            "best": self.best,
            "g": optimizers[0],
            "f": optimizers[1],
        }
        self.settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in checkpoint.FREE}
        self.settings |= {"precision": self.chosen.precision, "lr": config.rate()}
        self.settings |= {"teacher": teacher, "teacher_sha256": bundle.network_digest(teacher)}
        self.settings |= {"start_sha256": bundle.network_digest(config.start)}
        self.settings |= {"validated": validate is not None}
        self.settings |= {"data": images.source if images else None}
        self.settings |= {"data_sha256": images.sha256, "images": len(images)} if images else {}
        if config.checkpointing:
            for denoiser in (self.generator, self.fake.denoiser):
                cast(Any, denoiser.net).enable_gradient_checkpointing()
        # Prepared copies share the weights; they are called only where the gradient goes to those weights.
        self.g_model, self.f_model = (prepared(self.accelerator, net) for net in (self.generator, self.fake))
        self.g_optimizer, self.f_optimizer = self.accelerator.prepare(*optimizers)
        self.space: Space = space_of(self.teacher.parametrisation, mean=config.noise_mean, std=config.noise_std)
        self.plan, given = _plan_of(bundle, config, self.teacher)
        fitted_to = bundle.manifest.provenance.plans.get(config.plan or "", {}).get("data")
        self.settings |= {"plan_sha256": given, "plan_data": fitted_to}
        self.weights, self.interval = Weights.of(config.mode, config.guidance), config.interval()
        self.watch = Watch(self.accelerator, log, name, bundle.manifest.image, bundle.manifest.condition)
        if bundle.manifest.latent:
            self.watch.decode_by(lambda: load_decoder(bundle))

    def go(self, track: Track) -> Bundle:
        """All iterations, from wherever a checkpoint stands, and the network into the bundle."""
        start = self._resume()
        self.chosen.say()
        while start < self.config.iterations:
            for step in track(range(start, self.config.iterations), f"distil {self.name}"):
                self._iterate(step)
                start = step + 1
                ended = self._looked_enough(start)
                if start % self.config.checkpoint_every == 0 or ended or start == self.config.iterations:
                    if not self._finite():
                        start = self._go_back()
                        break
                    self._save(start)
                    self.watch.sheet(start, self.ema, self.plan, self.bundle.manifest.state_shape)
                if ended:
                    start = self.config.iterations
                    break
        made = gathered(self.best if self.validate else self.ema, self.blank)
        if self.accelerator.is_main_process:
            self._keep(made)
        self.watch.end()
        self.accelerator.wait_for_everyone()
        return Bundle.load(self.bundle.root)

    def _iterate(self, step: int) -> None:
        """One update of F, and one of G but for the warm-up."""
        config = self.config
        choices = {"accumulate": config.accumulate, "retry": self.retries}
        parts = Draws.parts(self.accelerator, config.seed, step, config.batch, **choices)
        uniform = config.match == "uniform" and config.plan is None
        drawn = [part.one(config.steps) if uniform else config.steps - 1 for part in parts]
        exit_step = drawn[0]  # the same in all
        adversarial = self.loader is not None and step >= config.adversarial_from * config.iterations
        of_fake = [self._fake_loss(part, exit_step, adversarial) for part in accumulated(self.accelerator, self.f_model, parts)]
        losses = {"fake_loss": torch.stack(of_fake).mean()}
        self._update(self.f_optimizer, self.fake)
        if step >= config.warmup * config.iterations:
            self.fake.requires_grad_(False)
            every = accumulated(self.accelerator, self.g_model, parts)
            losses["generator_loss"] = torch.stack([self._generator_loss(p, exit_step, adversarial) for p in every]).mean()
            self.fake.requires_grad_(True)
            self._update(self.g_optimizer, self.generator)
            average_into(self.ema, self.generator, updates=step, batch=config.batch, halflife_images=config.halflife_images)
        self.watch.curve(step + 1, **losses)

    def _fake_loss(self, draws: Draws, exit_step: int, adversarial: bool) -> Tensor:
        """F denoises what G makes; with real images it also tells both apart, at equal noise, level and condition."""
        if adversarial and self.loader:
            real, labels = self.loader(draws)
            condition = self.conditions.of(labels)
        else:
            real, condition = None, self.conditions.random(draws)
        noise = self._noise(draws)
        with torch.no_grad(), self.accelerator.autocast():
            images = self._make(self.generator, exit_step, noise, condition)
        levels, added = self.space.at(self.space.base(draws)), draws.normal(*images.shape[1:])
        null = self.conditions.null(condition)
        if self.config.mode == "lsg":
            condition = self.conditions.dropped(condition, DROPPED, draws)
        seen = [levels.noised(batch, added) for batch in (images, real) if batch is not None]
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
        loss: Tensor = weight * (denoised[: len(images)] - images).square().sum((1, 2, 3))
        if real is not None:
            fake_logits, real_logits = logits.chunk(2)
            loss = loss + weight * discriminator_loss(real_logits, fake_logits)
        return self._backward(loss.mean())

    def _generator_loss(self, draws: Draws, exit_step: int, adversarial: bool) -> Tensor:
        """G's images are to look to F as they look to T."""
        condition = self.conditions.random(draws)
        null, noise = self.conditions.null(condition), self._noise(draws)
        with self.accelerator.autocast():
            images = self._make(self.g_model, exit_step, noise, condition)
        low, high = self.space.scored
        levels = self.space.at(low + (high - low) * draws.uniform())
        noised = levels.noised(images, draws.normal(*images.shape[1:]))
        guided: float | Tensor = self.interval.weight
        if guided != 1:
            above = levels.sigma / levels.alpha
            guided = torch.where((above > self.interval.lo) & (above <= self.interval.hi), guided, 1.0)
        with self.accelerator.autocast():
            target = evaluate(self.teacher, noised, levels.sigma, condition, null, guided)
            estimate, logits = evaluate(self.fake, noised, levels.sigma, condition, null, self.weights.fake)
        loss = 100 * sid_loss(images, target, estimate, alpha=self.config.alpha)
        if adversarial:
            size = 0.01 * images[0].numel()
            loss = 0.5 * loss + 0.5 * size * generator_loss(logits) / sid_scale(images, target)
        return self._backward(loss.mean())

    def _backward(self, loss: Tensor) -> Tensor:
        self.accelerator.backward(loss / self.config.accumulate)
        return loss.detach()

    def _update(self, optimizer: Any, net: nn.Module) -> None:
        for parameter in net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)
        optimizer.step()
        optimizer.zero_grad()

    def _make(self, model: nn.Module, exit_step: int, noise: Sequence[Tensor], condition: tuple[Tensor, ...]) -> Tensor:
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
        """One unit-normal (B, C, H, W) for each draw of the plan."""
        return [draws.normal(*self.bundle.manifest.state_shape) for _ in range(self.plan.draws)]

    def _looked_enough(self, step: int) -> bool:
        """Look at the metric where it is time to; whether patience is at its end."""
        if self.validate is None or (step % self.config.validate_every and step != self.config.iterations):
            return False
        value = float("inf")
        if self.accelerator.is_main_process or self.config.shard:
            value = self.validate(self.ema, self.plan)
        (value,) = broadcast_object_list([value])
        self.metrics[step] = value
        self.accelerator.log({"metric": value}, step=step)
        if value <= min(self.metrics.values()):
            self.best.load_state_dict(self.ema.state_dict())
        best = min(self.metrics, key=lambda seen: self.metrics[seen])
        since = sum(seen > best for seen in self.metrics)
        return bool(self.config.patience) and since >= self.config.patience

    def _finite(self) -> bool:
        nets = (self.generator, self.fake)
        return all(bool(parameter.isfinite().all()) for net in nets for parameter in net.parameters())

    def _resume(self) -> int:
        """Where to begin. A run that begins anew saves at once, so that there is something to go back to."""
        found = checkpoint.load(self.saved, self.parts, settings=self.settings)
        scale_as(self.accelerator, found.state.get("scaling", {}))
        self.retries: int = found.state.get("retries", 0)
        self.metrics: dict[int, float] = {int(step): value for step, value in found.state.get("metrics", [])}
        if not self.saved.exists():
            self.accelerator.wait_for_everyone()
            self._save(0)
        return found.step

    def _save(self, step: int) -> None:
        state = {"retries": self.retries, "metrics": list(self.metrics.items()), "scaling": scaling(self.accelerator)}
        checkpoint.save(self.saved, self.parts, step=step, settings=self.settings, state=state)

    def _go_back(self) -> int:
        """To the last checkpoint, for other random numbers."""
        retries = self.retries + 1
        if retries > MAX_RETRIES:
            raise ValueError(
                f"the weights did not stay finite, with {MAX_RETRIES + 1} draws of random numbers after iteration "
                f"{checkpoint.load(self.saved, self.parts, settings=self.settings).step}; lower --lr or --alpha"
            )
        start = self._resume()
        self.retries = retries
        return start

    def _keep(self, made: Denoiser) -> None:
        """The network, its plan and where it is from into the bundle."""
        bundle, config = Bundle.load(self.bundle.root), self.config
        with bundle.edit() as draft:
            save_network(draft, self.name, made)
            draft.manifest.plans[self.name] = PlanEntry.of(
                self.plan, network=self.name, solver=f"SiD generator, {config.steps} step{'s' if config.steps > 1 else ''}"
            )
            draft.manifest.default = self.name
            metrics = [{"iteration": step, "value": value} for step, value in self.metrics.items()]
            about = self.provenance | self.settings | {"retries": self.retries, "metrics": metrics}
            about["inherited_licenses"] = inherited(draft.manifest, config.start, self.settings["teacher"])
            draft.manifest.provenance.networks[self.name] = about
            write_card(draft)
        checkpoint.remove(self.saved)


def _plan_of(bundle: Bundle, config: SidConfig, teacher: Denoiser) -> tuple[Plan, str | None]:
    """What G walks and, for a sampler of the bundle, the hash of its numbers."""
    if config.plan is None:
        return few_step(generator_grid(teacher.parametrisation, config.steps, config.sigma_start)), None
    plan = bundle.plan(config.plan)
    if plan.guided or plan.rows != config.steps:
        calls = f"{plan.rows} steps{', guided' if plan.guided else ''}"
        raise ValueError(
            f"a generator of {config.steps} steps begins as a sampler of as many, not guided; {config.plan!r} has {calls}"
        )
    numbers = bundle.manifest.plans[config.plan].model_dump_json(exclude={"solver"})
    return plan, hashlib.sha256(numbers.encode()).hexdigest()


def _like(bundle: Bundle, images: Images | None) -> Images | None:
    """Real images with the bundle's numbers of classes. Raises ValueError for images of another kind than it makes."""
    manifest = bundle.manifest
    if images is None:
        return None
    images = numbered_like(bundle, images)
    latent = images.latent if isinstance(images, Latents) else None
    made = manifest.latent.model_copy(update={"directory": None}) if manifest.latent else None
    if latent != made or images.image != manifest.image or images.condition != manifest.condition:
        raise ValueError(
            f"{bundle.root.name} makes other images than {images.source} holds; give real images like those it was trained on"
        )
    return images

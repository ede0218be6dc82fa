"""Train a teacher: a denoiser in any parametrisation.

With the Lskip objective of S2-DMs (arXiv 2401.01520), and the curriculum and momentum decay of the consistency phenomenon
(arXiv 2404.07946).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle, Draft, check_new
from fewstep.artifact.card import write_card
from fewstep.artifact.manifest import ImageSpec, PlanEntry
from fewstep.data import Images
from fewstep.data.latents import Latents
from fewstep.models.decoder import save_decoder
from fewstep.models.denoiser import Denoiser, fresh_network, on_meta, save_network, unet
from fewstep.models.mixed_precision import refuse_precision
from fewstep.sampling.parametrisation import Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.sampling.plan import Plan
from fewstep.sampling.solvers import heun
from fewstep.system.progress import Track, silent
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import Loader
from fewstep.trainer.conditions import Conditions
from fewstep.trainer.draws import Draws, accumulated, refuse_parts
from fewstep.trainer.ema import average_into
from fewstep.trainer.levels import Curriculum, space_of
from fewstep.trainer.losses import lskip_loss
from fewstep.trainer.rates import Schedule, rates, refuse_rate
from fewstep.trainer.shards import gathered, prepared, shard
from fewstep.trainer.watch import Watch, accelerator_for, scale_as, scaling

__all__ = ["TeacherConfig", "train_teacher"]

Kind = Literal["edm", "eps", "v", "flow"]


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of a teacher run. steps are updates of `batch` images (over all processes).

    kind: what the network estimates. network: its configuration as diffusers writes it, with _class_name; where there is none,
    a UNet2DModel of channels, layers, attention. noise_mean, noise_std: of ln(sigma / alpha), for EDM and flows. tau, skip,
    shared: Lskip, and whether its second noise is the first one. curriculum: width of the CLTS normal. schedule: of the
    learning rate and of Adam's momentum, see fewstep.trainer.rates. accumulate: parts that a batch is computed in, one after
    the other. checkpointing: forget activations and compute them again, for memory. shard: every process keeps a share of the
    weights, see fewstep.trainer.shards. compile: by torch.compile. validate_every: updates between two looks at a metric.
    """

    steps: int = 2000
    batch: int = 32
    lr: float = 3e-3
    warmup: int = 100
    seed: int = 0
    kind: Kind = "edm"
    network: Mapping[str, Any] | None = None
    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: bool = False
    patch: int = 2
    sigma_data: float = 0.5
    noise_mean: float = -0.6
    noise_std: float = 1.3
    tau: float = 0.99
    skip: int = 9
    shared: bool = False
    curriculum: float | None = None
    schedule: Schedule = "linear"
    drop_label: float = 0.1
    halflife_images: float = 5e3
    precision: str = "auto"
    accumulate: int = 1
    checkpointing: bool = False
    shard: bool = False
    compile: bool = False
    checkpoint_every: int = 50
    validate_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"training needs at least 1 step and 1 image a batch, got {self.steps} and {self.batch}")
        if self.checkpoint_every < 1 or self.validate_every < 1:
            raise ValueError("training saves, and looks at its metric, every 1 update or more")
        refuse_parts(self.batch, self.accumulate)
        refuse_precision(self.precision)
        refuse_rate(self.lr)
        if not 0 < self.sigma_data < inf:
            raise ValueError(f"sigma_data, the standard deviation of the data, is above 0 and finite, got {self.sigma_data}")
        if not 0 <= self.tau <= 1 or self.skip < 0:  # also where tau is not a number
            raise ValueError(f"Lskip needs 0 <= tau <= 1 and skip >= 0, got tau={self.tau}, skip={self.skip}")
        if self.kind == "flow" and self.tau != 1:
            raise ValueError(f"Lskip is stated for EDM, eps and v, not for flows, got tau={self.tau}; train a flow with tau 1")
        rates(self.schedule, 0, self.steps, self.warmup)
        if self.curriculum is not None:
            Curriculum(self.curriculum)
        self.parametrisation()

    def parametrisation(self) -> Parametrisation:
        """What the network estimates. Raises ValueError for a kind there is not."""
        made: dict[str, Parametrisation] = {
            "eps": Eps(),
            "v": Velocity(),
            "flow": Flow(),
            "edm": Edm(sigma_data=self.sigma_data),
        }
        if self.kind not in made:
            raise ValueError(f"a network estimates one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        return made[self.kind]


def train_teacher(
    out: Path,
    images: Images,
    config: TeacherConfig,
    *,
    embeddings: Mapping[str, Tensor] | None = None,
    validate: Callable[[Denoiser, Plan], float] | None = None,
    license: str | None = None,
    log: Path | None = None,
    track: Track = silent,
) -> Bundle:
    """Train on images, or latents of some, and write a bundle with the network `teacher` and its 18-step Heun plan.

    Returns the bundle, at `out` then. images: from fewstep.trainer.batches.open_examples or Images.of. embeddings: of
    the prompts that the images' labels count, and of none, where the network takes some. validate: a metric of the averaged
    weights and that plan, for the curve and the bundle's provenance. license: of the images, in words, for the bundle's card.
    log: a directory for curves and sheets of samples, see fewstep.trainer.watch.

    Killed and started again with the same arguments, it goes on from its last checkpoint to the same weights, bit for bit.
    Raises FileExistsError when the bundle exists, ValueError for a name it cannot have, when a checkpoint of other settings is
    in the way, or the network does not fit the images.
    """
    check_new(out)
    with checkpoint.alone(checkpoint.checkpoint_path(out, "teacher")):
        return _Run(out, images, config, embeddings, validate, license, log).go(track)


class _Run:
    """One training: its networks, and what an update does."""

    def __init__(
        self,
        out: Path,
        images: Images,
        config: TeacherConfig,
        embeddings: Mapping[str, Tensor] | None,
        validate: Callable[[Denoiser, Plan], float] | None,
        license: str | None,
        log: Path | None,
    ) -> None:
        self.out, self.images, self.config, self.validate, self.license = out, images, config, validate, license
        self.saved = checkpoint.checkpoint_path(out, "teacher")
        self.accelerator, self.chosen = accelerator_for(config.precision, log, saved=self.saved, what="train teacher")
        refuse_parts(config.batch, config.accumulate * self.accelerator.num_processes)
        device = self.accelerator.device
        if config.compile and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise ValueError("compiling needs a C++ compiler here, and there is no g++; install one, or leave out --compile")
        self.conditions, self.loader = Conditions(images.condition, embeddings, device), Loader(images)
        self.conditions.check(images)
        torch.manual_seed(config.seed)
        self.denoiser = _network(images, config)
        self.ema, self.blank = copy.deepcopy(self.denoiser).requires_grad_(False), on_meta(self.denoiser)
        for net in (self.denoiser, self.ema):
            shard(self.accelerator, net) if config.shard else net.to(device)
        optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.parts: checkpoint.Parts = {"net": self.denoiser, "ema": self.ema, "optimizer": optimizer}
        self.settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in checkpoint.FREE}
        self.settings |= {"precision": self.chosen.precision}
        self.settings |= {"data": images.source, "data_sha256": images.sha256, "images": len(images)}
        self.settings |= {"classes": list(images.names)} if images.names else {}
        self.settings |= {"prompts": self.conditions.count} if embeddings else {}
        self.start, state = checkpoint.load(self.saved, self.parts, settings=self.settings)
        scale_as(self.accelerator, state.get("scaling", {}))
        self.metrics: list[dict[str, float]] = list(state.get("metrics", []))
        if config.checkpointing:
            cast(Any, self.denoiser.net).enable_gradient_checkpointing()
        if config.compile:
            self.denoiser.compile()
        self.model = prepared(self.accelerator, self.denoiser)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.space = space_of(self.denoiser.parametrisation, mean=config.noise_mean, std=config.noise_std)
        self.curriculum = None if config.curriculum is None else Curriculum(config.curriculum)
        self.plan = heun(self.denoiser.parametrisation.grid(18))
        self.watch = Watch(self.accelerator, log, "teacher", images.image, images.condition)
        if isinstance(images, Latents):
            self.watch.decode_by(images.decoder)

    def go(self, track: Track) -> Bundle:
        """All updates, from wherever a checkpoint stands, and the network into a bundle."""
        config = self.config
        self.chosen.say()
        for step in track(range(self.start, config.steps), "train teacher"):
            self._update(step)
            done, last = step + 1, step + 1 == config.steps
            if self.validate and (done % config.validate_every == 0 or last):
                self._look(self.validate, done)
            if done % config.checkpoint_every == 0 or last:
                self.watch.sheet(done, self.ema, self.plan, self.images.state_shape)
                about = {"metrics": self.metrics, "scaling": scaling(self.accelerator)}
                checkpoint.save(self.saved, self.parts, step=done, settings=self.settings, state=about)
        trained = gathered(self.ema, self.blank)
        if self.accelerator.is_main_process:
            self._keep(trained)
        self.watch.end()
        self.accelerator.wait_for_everyone()
        return Bundle.load(self.out)

    def _update(self, step: int) -> None:
        config, accelerator = self.config, self.accelerator
        parts = Draws.parts(accelerator, config.seed, step, config.batch, accumulate=config.accumulate)
        losses = [self._loss(draws, step / config.steps) for draws in accumulated(accelerator, self.model, parts)]
        rate = rates(config.schedule, step, config.steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = config.lr * rate.lr, (rate.beta1, group["betas"][1])
        accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        average_into(self.ema, self.denoiser, updates=step, batch=config.batch, halflife_images=config.halflife_images)
        self.watch.curve(step + 1, loss=torch.stack(losses).mean(), lr=config.lr * rate.lr)

    def _loss(self, draws: Draws, progress: float) -> Tensor:
        """Of a part of the batch, its gradient added to the weights'. progress: the share of the run that is done."""
        config, shape = self.config, self.images.state_shape
        x0, labels = self.loader(draws)
        condition = self.conditions.dropped(self.conditions.of(labels), config.drop_label, draws)
        position = self.space.draw(draws, self.curriculum, progress)
        noise, other = draws.normal(*shape), draws.normal(*shape)
        other = noise if config.shared else other
        losses = lskip_loss(self.model, x0, position, noise, other, condition, self.space, skip=config.skip, tau=config.tau)
        loss = losses.mean()
        self.accelerator.backward(loss / config.accumulate)
        return loss.detach()

    def _look(self, validate: Callable[[Denoiser, Plan], float], step: int) -> None:
        """At the metric of the averaged weights."""
        if self.accelerator.is_main_process or self.config.shard:
            self.metrics.append({"step": step, "value": validate(self.ema, self.plan)})
            self.accelerator.log({"metric": self.metrics[-1]["value"]}, step=step)
        self.accelerator.wait_for_everyone()

    def _keep(self, trained: Denoiser) -> None:
        """The network, its plan and where it is from in a new bundle."""
        images = self.images
        with Draft.create(self.out, image=images.image, condition=images.condition) as draft:
            if isinstance(images, Latents):
                save_decoder(draft, images.load_autoencoder())
            save_network(draft, "teacher", trained)
            draft.manifest.plans["heun18"] = PlanEntry.of(self.plan, network="teacher", solver="Heun, 18 steps")
            draft.manifest.default = "heun18"
            about = {key: value for key, value in self.settings.items() if key != "classes"}  # the bundle's condition has them
            draft.manifest.provenance.networks["teacher"] = about | {"metrics": self.metrics, "license": self.license}
            write_card(draft)
        checkpoint.remove(self.saved)


def _network(images: Images, config: TeacherConfig) -> Denoiser:
    """A fresh network for the images."""
    channels, height, width = images.state_shape
    state = ImageSpec(channels=channels, height=height, width=width)
    if images.condition.kind == "embeddings" and config.network is None:
        raise ValueError(
            "a network that takes embeddings is not made by itself; give --network, a config.json of diffusers, of a "
            "UNet2DConditionModel or an SD3Transformer2DModel"
        )
    if config.network is not None:
        return fresh_network(
            config.network, state, images.condition, parametrisation=config.parametrisation(), patch=config.patch
        )
    return unet(
        state,
        images.condition,
        channels=config.channels,
        layers=config.layers,
        attention=config.attention,
        patch=config.patch,
        parametrisation=config.parametrisation(),
    )

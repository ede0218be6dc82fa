"""Train a teacher: a denoiser in any parametrisation.

With the Lskip objective of S2-DMs (arXiv 2401.01520), and the curriculum and momentum decay of the consistency phenomenon
(arXiv 2404.07946).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from fewstep.bundle import Bundle, Draft, check_new
from fewstep.card import write_card
from fewstep.data import Images
from fewstep.decoder import save_decoder
from fewstep.denoiser import Denoiser, fresh_network, on_meta, save_network, unet
from fewstep.manifest import ImageSpec, PlanEntry
from fewstep.parametrisation import Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.plan import Plan
from fewstep.progress import Track, silent
from fewstep.solvers import heun
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import Loader
from fewstep.trainer.conditions import Conditions
from fewstep.trainer.draws import Draws, accumulated, refuse_parts
from fewstep.trainer.ema import average_into
from fewstep.trainer.latents import Latents
from fewstep.trainer.levels import Curriculum, space_of
from fewstep.trainer.losses import lskip_loss
from fewstep.trainer.rates import Schedule, rates
from fewstep.trainer.shards import gathered, prepared, shard
from fewstep.trainer.watch import Watch, accelerator_for, refuse_precision

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
    precision: str = "bf16"
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
    licence: str | None = None,
    log: Path | None = None,
    track: Track = silent,
) -> Bundle:
    """Train on images, or latents of some, and write a bundle with the network `teacher` and its 18-step Heun plan.

    embeddings: of the prompts that the images' labels count, and of none, where the network takes some. validate: a metric of
    the averaged weights and that plan, for the curve and the bundle's provenance. licence: of the images, in words, for the
    bundle's card. log: a directory for curves and sheets of samples, see fewstep.trainer.watch.

    Killed and started again with the same arguments, it goes on from its last checkpoint to the same weights, bit for bit.
    Raises FileExistsError when the bundle exists, ValueError for a name it cannot have, when a checkpoint of other settings is
    in the way, or the network does not fit the images.
    """
    check_new(out)
    accelerator = accelerator_for(config.precision, log)
    conditions, loader = Conditions(images.condition, embeddings, accelerator.device), Loader(images)
    conditions.check(images)
    state_shape = images.state_shape
    torch.manual_seed(config.seed)
    denoiser = _network(images, config)
    ema, blank = copy.deepcopy(denoiser).requires_grad_(False), on_meta(denoiser)
    for net in (denoiser, ema):
        shard(accelerator, net) if config.shard else net.to(accelerator.device)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
    parts: checkpoint.Parts = {"net": denoiser, "ema": ema, "optimizer": optimizer}
    settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in checkpoint.FREE}
    settings |= {"data": images.source, "images": len(images)}
    settings |= {"prompts": conditions.count} if embeddings else {}
    saved = checkpoint.checkpoint_path(out, "teacher")
    start, state = checkpoint.load(saved, parts, settings=settings)
    metrics: list[dict[str, float]] = list(state.get("metrics", []))
    if config.checkpointing:
        cast(Any, denoiser.net).enable_gradient_checkpointing()
    if config.compile:
        denoiser.compile()
    model = prepared(accelerator, denoiser)
    optimizer = accelerator.prepare(optimizer)
    space = space_of(denoiser.parametrisation, mean=config.noise_mean, std=config.noise_std)
    curriculum = None if config.curriculum is None else Curriculum(config.curriculum)

    plan = heun(denoiser.parametrisation.grid(18))
    watch = Watch(accelerator, log, "teacher", images.image, images.condition)
    if isinstance(images, Latents):
        watch.decode_by(images.decoder)

    for step in track(range(start, config.steps), "train teacher"):
        every = Draws.parts(accelerator, config.seed, step, config.batch, accumulate=config.accumulate)
        losses = []
        for draws in accumulated(accelerator, model, every):
            x0, labels = loader(draws)
            condition = conditions.dropped(conditions.of(labels), config.drop_label, draws)
            position = space.draw(draws, curriculum, step / config.steps)
            noise, other = draws.normal(*state_shape), draws.normal(*state_shape)
            other = noise if config.shared else other
            loss = lskip_loss(model, x0, position, noise, other, condition, space, skip=config.skip, tau=config.tau).mean()
            accelerator.backward(loss / config.accumulate)
            losses.append(loss.detach())
        rate = rates(config.schedule, step, config.steps, config.warmup)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = config.lr * rate.lr, (rate.beta1, group["betas"][1])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average_into(ema, denoiser, updates=step, batch=config.batch, halflife_images=config.halflife_images)
        watch.curve(step + 1, loss=torch.stack(losses).mean(), lr=config.lr * rate.lr)
        if validate and ((step + 1) % config.validate_every == 0 or step + 1 == config.steps):
            if accelerator.is_main_process or config.shard:
                metrics.append({"step": step + 1, "value": validate(ema, plan)})
                accelerator.log({"metric": metrics[-1]["value"]}, step=step + 1)
            accelerator.wait_for_everyone()
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            watch.sheet(step + 1, ema, plan, state_shape)
            checkpoint.save(saved, parts, step=step + 1, settings=settings, state={"metrics": metrics})

    trained = gathered(ema, blank)
    if accelerator.is_main_process:
        with Draft.create(out, image=images.image, condition=images.condition) as draft:
            if isinstance(images, Latents):
                save_decoder(draft, images.load_autoencoder())
            save_network(draft, "teacher", trained)
            draft.manifest.plans["heun18"] = PlanEntry.of(plan, network="teacher", solver="Heun, 18 steps")
            draft.manifest.default = "heun18"
            draft.manifest.provenance["teacher"] = settings | {"metrics": metrics, "licence": licence}
            write_card(draft)
        checkpoint.remove(saved)
    watch.end()
    accelerator.wait_for_everyone()
    return Bundle.load(out)


def _network(images: Images, config: TeacherConfig) -> Denoiser:
    """A fresh network for the images."""
    channels, height, width = images.state_shape
    state = ImageSpec(channels=channels, height=height, width=width)
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

"""Distil a few-step generator without data: score identity distillation (SiD).

Zhou et al. 2024 (arXiv 2404.04057), several steps as in arXiv 2505.12674. Three networks start as copies of the teacher:
the generator G, the fake score F that learns to denoise what G makes, and the teacher T, frozen. No image is read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.bundle import Bundle
from fewstep.denoiser import load_network, save_network
from fewstep.guidance import Guidance, mix
from fewstep.manifest import Condition, NetworkEntry, PlanEntry
from fewstep.parametrisation import Edm
from fewstep.plan import Plan, trajectory
from fewstep.progress import Track, silent
from fewstep.schedule import uniform
from fewstep.solvers import few_step
from fewstep.trainer import checkpoint
from fewstep.trainer.draws import Draws
from fewstep.trainer.ema import average_into
from fewstep.trainer.levels import Levels, space_of
from fewstep.trainer.losses import denoising_loss, sid_loss

__all__ = ["SidConfig", "digits_sid", "distill"]


@dataclass(frozen=True)
class SidConfig:
    """Settings of a distillation. steps is K, the network calls per image; iterations are updates of G (and of F).

    guidance is the weight that the teacher's estimate is guided with, at noise levels above lo and up to hi (None: all that are
    higher); the generator then makes guided images in one pass.
    """

    steps: int = 1
    iterations: int = 220
    batch: int = 32
    lr: float = 6e-4
    alpha: float = 1.2
    guidance: float = 1.0
    lo: float = 0.0
    hi: float | None = None
    sigma_start: float = 2.5
    noise_mean: float = -1.2
    noise_std: float = 1.2
    seed: int = 0
    halflife_images: float = 2e3
    precision: str = "bf16"
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 4:
            raise ValueError(f"SiD generators take 1 to 4 steps, got {self.steps}; use a calibrated solver beyond that")
        if self.iterations < 1 or self.batch < 1:
            raise ValueError(f"distillation needs 1 iteration and 1 image a batch, got {self.iterations}, {self.batch}")


def digits_sid(steps: int) -> SidConfig:
    """What worked on small images in minutes: the teacher guided by 1.5, and for several steps alpha 1 and half the rate."""
    config = SidConfig(guidance=1.5)
    return config if steps == 1 else replace(config, steps=steps, iterations=100, alpha=1.0, lr=3e-4)


def distill(bundle: Bundle, name: str, config: SidConfig, *, teacher: str = "teacher", track: Track = silent) -> Bundle:
    """Distil `teacher` into the network and plan `name` of the bundle.

    Each iteration draws one exit step for all and matches its output, a uniform mixture over the K outputs. Killed and
    started again with the same arguments, it goes on from its last checkpoint to the same weights, bit for bit.

    Raises ValueError for a teacher that is not an EDM network, or a condition that cannot be drawn at random.
    """
    _refuse_others(bundle, teacher)
    accelerator = Accelerator(mixed_precision=config.precision)
    frozen = load_network(bundle, teacher).requires_grad_(False).to(accelerator.device)
    generator, fake = (copy.deepcopy(frozen).requires_grad_(True) for _ in range(2))
    ema = copy.deepcopy(generator).requires_grad_(False)
    optimizers = [torch.optim.Adam(n.parameters(), lr=config.lr, betas=(0.0, 0.999), fused=True) for n in (generator, fake)]
    parts: checkpoint.Parts = {"generator": generator, "fake": fake, "ema": ema, "g": optimizers[0], "f": optimizers[1]}
    weights = [bundle.manifest.files[f].sha256 for f in sorted(bundle.manifest.files) if f"networks/{teacher}/" in f]
    settings = asdict(replace(config, checkpoint_every=0)) | {"teacher": teacher, "teacher_sha256": weights}
    saved = checkpoint.checkpoint_path(bundle.root, name)
    start = checkpoint.load(saved, parts, settings=settings)
    # Prepared copies share the weights; they are called only where the gradient goes to those weights.
    g_model, f_model, g_optimizer, f_optimizer = accelerator.prepare(generator, fake, *optimizers)
    space = space_of(frozen.parametrisation, mean=config.noise_mean, std=config.noise_std)
    plan = few_step(uniform(config.steps, config.sigma_start))
    interval = Guidance.of({"weight": config.guidance, "lo": config.lo, "hi": config.hi})

    for step in track(range(start, config.iterations), f"distil {name}"):
        draws = Draws.of(accelerator, config.seed, step, config.batch)
        exit_step = draws.one(config.steps)
        condition, noise = _inputs(bundle, plan, draws)
        with torch.no_grad(), accelerator.autocast():
            x, level = _walk(generator, plan, exit_step, noise, condition)
            images = generator(x, level, *condition)
        sigma = (config.noise_mean + config.noise_std * draws.normal()).exp()
        levels = Levels(torch.ones_like(sigma), sigma)
        loss = denoising_loss(f_model, images, levels, draws.normal(*images.shape[1:]), condition, space.weight(levels))
        _update(accelerator, f_optimizer, fake, loss.mean() * images[0].numel())

        condition, noise = _inputs(bundle, plan, draws)
        null = tuple(torch.full_like(label, bundle.manifest.condition.classes) for label in condition)
        with accelerator.autocast():
            x, level = _walk(generator, plan, exit_step, noise, condition)
        images = g_model(x, level, *condition)
        sigma = _karras_level(0.8 * draws.uniform())
        noised = images + sigma.reshape(-1, 1, 1, 1) * draws.normal(*images.shape[1:])
        fake.requires_grad_(False)
        with accelerator.autocast():
            target = frozen(noised, sigma, *condition)
            if condition and interval.weight != 1:
                weight = torch.where((sigma > interval.lo) & (sigma <= interval.hi), interval.weight, 1.0)
                target = mix(target, frozen(noised, sigma, *null), weight.reshape(-1, 1, 1, 1))
            estimate = fake(noised, sigma, *condition)
        loss = sid_loss(images, target, estimate, alpha=config.alpha)
        _update(accelerator, g_optimizer, generator, 100 * loss.mean())
        fake.requires_grad_(True)
        average_into(ema, generator, updates=step, batch=config.batch, halflife_images=config.halflife_images)
        if (step + 1) % config.checkpoint_every == 0 and accelerator.is_main_process:
            checkpoint.save(saved, parts, step=step + 1, settings=settings)

    if accelerator.is_main_process:
        with bundle.edit() as draft:
            save_network(draft, name, ema)
            draft.manifest.plans[name] = PlanEntry.of(plan, network=name, solver=f"SiD generator, {config.steps} steps")
            draft.manifest.default = name
            draft.manifest.provenance[name] = settings
        saved.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return Bundle.load(bundle.root)


def _refuse_others(bundle: Bundle, teacher: str) -> None:
    entry: NetworkEntry = bundle.pick("network", teacher, bundle.manifest.networks)
    if not isinstance(entry.parametrisation, Edm):
        raise ValueError(
            f"SiD distils EDM networks, {teacher!r} is one of {entry.parametrisation.kind}; train a teacher for it"
        )
    if bundle.manifest.condition.kind == "embeddings":
        raise ValueError(
            "SiD draws its conditions at random, which embeddings do not allow; distil a network of labels or none"
        )


def _inputs(bundle: Bundle, plan: Plan, draws: Draws) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Random labels (B,) and one unit-normal (B, C, H, W) per draw of the plan."""
    condition: Condition = bundle.manifest.condition
    labels = (draws.integers(condition.classes),) if condition.kind == "labels" else ()
    return labels, [draws.normal(*bundle.manifest.state_shape) for _ in range(plan.draws)]


def _walk(
    generator: nn.Module, plan: Plan, exit_step: int, noise: Sequence[Tensor], condition: tuple[Tensor, ...]
) -> tuple[Tensor, float]:
    """The state and noise level at row exit_step of the generator's plan, walked without gradient."""
    x = float(plan.sigmas[0]) * noise[0]
    with torch.no_grad():
        walk = trajectory(lambda x, sigma: generator(x, sigma, *condition), x, plan, noise[1:])
        for step in islice(walk, exit_step):
            x = step.x
    return x, float(plan.sigmas[exit_step])


def _karras_level(u: Tensor) -> Tensor:
    """sigma at position u of the Karras range, 0.002 at u = 0 and 80 at u = 1."""
    bottom, top = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    level: Tensor = (top + (1 - u) * (bottom - top)) ** 7
    return level


def _update(accelerator: Accelerator, optimizer: Any, net: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad()
    accelerator.backward(loss)
    for parameter in net.parameters():
        if parameter.grad is not None:
            torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)
    optimizer.step()

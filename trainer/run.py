"""A training run: everything that methods share. A method is its losses and the networks it owns, beside this.

Killed and started again with the same arguments, a run goes on from its last checkpoint to the same weights, bit for bit; where
weights stop being finite, it goes back there by itself and draws other numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.artifact.records import Look
from fewstep.artifact.signature import Signature, State
from fewstep.data import Samples
from fewstep.data.conditions import Conditions
from fewstep.data.inputs import Arrays
from fewstep.models.decoder import Decoder
from fewstep.models.denoiser import Denoiser, on_meta
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import Loader
from fewstep.trainer.configs import RunConfig, refuse_parts
from fewstep.trainer.draws import Draws, accumulated
from fewstep.trainer.ema import average_into
from fewstep.trainer.shards import gathered, shard
from fewstep.trainer.watch import Watch, accelerator_for, scale_as, scaling

__all__ = ["Material", "Run", "Validate", "adam"]

MAX_RETRIES = 3
Validate = Callable[[Denoiser, Plan], float]


@dataclass(frozen=True)
class Material:
    """What a run learns from.

    Args:
        signature: of the model.
        state: what its samplers walk on.
        samples: real ones, where there are some.
        arrays: what samples are made from, where that cannot be drawn; see fewstep.data.conditions.
        validate: a metric, lower is better, of averaged weights and a plan.
        decoder: loads what turns states into the output, where something does.
        log: a directory for curves and sheets of samples, see fewstep.trainer.watch.
    """

    signature: Signature
    state: State
    samples: Samples | None = None
    arrays: Arrays | None = None
    validate: Validate | None = None
    decoder: Callable[[], Decoder] | None = None
    log: Path | None = None


@dataclass
class Progress:
    """Where a run stands, besides its tensors."""

    done: int = 0
    retries: int = 0
    looks: list[Look] = field(default_factory=list)

    @property
    def best(self) -> Look:
        """The look with the lowest value, the first of equal ones."""
        return min(self.looks, key=lambda look: look.value)


class Run(ABC):
    """One run of a method.

    A method makes its networks in `__init__` and hands them to `begin`; `update` is an update, `keep` what comes of all.
    """

    keeps_best: ClassVar[bool] = False  # whether the weights that a metric found best are what comes of it
    doing: ClassVar[str] = "train"
    way_out: ClassVar[str] = "lower --lr"

    def __init__(self, bundle: Path, name: str, config: RunConfig, material: Material) -> None:
        if config.patience and material.validate is None:
            raise ValueError("patience counts looks at a metric, and there is none; give samples to --validate")
        self.out, self.name, self.config, self.material = bundle, name, config, material
        self.saved = checkpoint.checkpoint_path(bundle, name)
        chosen = accelerator_for(config.mixed_precision, material.log, saved=self.saved, what=f"{self.doing} {name}")
        self.accelerator, self.chosen = chosen
        refuse_parts(config.batch, config.accumulate * self.accelerator.num_processes)
        samples = material.samples
        self.conditions = Conditions(material.signature.inputs, material.arrays, self.accelerator.device)
        self.loader = Loader(samples) if samples else None
        if samples:
            self.conditions.check(samples)
        self.plan: Plan
        self.progress = Progress()

    @abstractmethod
    def update(self, step: int) -> Mapping[str, Tensor | float]:
        """One update, number `step` from 0; what of it curves show."""

    @abstractmethod
    def keep(self, made: Denoiser) -> None:
        """The network that came of the run, into a bundle."""

    def placed(self, *networks: nn.Module) -> None:
        """Networks on the device, or this process's share of them. To be called before optimizers are made."""
        for net in networks:
            shard(self.accelerator, net) if self.config.shard else net.to(self.accelerator.device)

    def begin(self, parts: checkpoint.Parts, *, average: Denoiser, learns: Mapping[str, Denoiser], **about: Any) -> None:
        """From a checkpoint where there is one.

        Args:
            parts: every network and optimizer that a checkpoint holds.
            average: the network that is evaluated, shown and kept.
            learns: networks that gradients go through.
            about: what else the run depends on; a checkpoint of another run is refused.
        """
        self.average, self.blank = average, on_meta(average)
        self.best = cast(Denoiser, parts["best"]) if self.keeps_best else average
        self.parts, config, samples = parts, self.config, self.material.samples
        self.settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in checkpoint.FREE}
        self.settings |= {"mixed_precision": self.chosen.precision, "lr": config.rate()}
        self.settings |= {"data": samples.source if samples else None}
        self.settings |= {"data_sha256": samples.sha256, "samples": len(samples)} if samples else {}
        self.settings |= {"rows": self.conditions.count} if self.conditions.arrays else {}
        self.settings |= about
        self._resume()
        if config.checkpointing:
            for denoiser in learns.values():
                cast(Any, denoiser.net).enable_gradient_checkpointing()
        self.watch = Watch(self.accelerator, self.material.log, self.name, self.material.signature, self.conditions)
        if self.material.decoder:
            self.watch.decode_by(self.material.decoder)

    def go(self, track: Track = silent) -> None:
        """All updates, from wherever a checkpoint stands, and what comes of them into a bundle."""
        self.chosen.say()
        while self.progress.done < self.config.iterations:
            for step in track(range(self.progress.done, self.config.iterations), f"{self.doing} {self.name}"):
                self.watch.curve(step + 1, **self.update(step))
                if self._after(step + 1):
                    break
        made = gathered(self.best if self.keeps_best and self.progress.looks else self.average, self.blank)
        if self.accelerator.is_main_process:
            self.keep(made)
            checkpoint.remove(self.saved)
        self.watch.end()
        self.accelerator.wait_for_everyone()

    def draws(self, step: int) -> list[Draws]:
        """Random numbers of an update, in the parts that its batch is computed in."""
        config = self.config
        choices = {"accumulate": config.accumulate, "retry": self.progress.retries}
        return Draws.parts(self.accelerator, config.seed, step, config.batch, **choices)

    def accumulated(self, model: nn.Module, parts: list[Draws]) -> Iterator[Draws]:
        """The parts of an update of `model`.

        Args:
            model: whose gradients are accumulated.
            parts: of `draws`.
        """
        return accumulated(self.accelerator, model, parts)

    def backward(self, loss: Tensor) -> Tensor:
        """The mean of losses (B,), its gradient added to the weights'."""
        mean = loss.mean()
        self.accelerator.backward(mean / self.config.accumulate)
        return mean.detach()

    def move_average(self, net: nn.Module, step: int) -> None:
        """Move the average towards a network, after update number `step`.

        Args:
            net: as it is after the update.
            step: from 0.
        """
        config = self.config
        average_into(self.average, net, updates=step, batch=config.batch, halflife_images=config.halflife_images)

    def normal(self, draws: Draws) -> Tensor:
        """Unit noise like a state, (B, C, ...)."""
        return draws.normal(*self.material.state.shape)

    def metrics(self) -> list[Look]:
        """What a metric said, for a record."""
        return self.progress.looks

    def _after(self, done: int) -> bool:
        """What follows an update: a look, a checkpoint, a sheet. Whether the walk over updates begins anew, or ends."""
        config, self.progress.done = self.config, done
        ended = self._looked_enough(done)
        if done % config.checkpoint_every == 0 or ended or done == config.iterations:
            if not self._finite():
                self._go_back()
                return True
            self._save()
            self.watch.sheet(done, self.average, self.plan, self.material.state)
        if ended:
            self.progress.done = config.iterations
        return ended

    def _looked_enough(self, done: int) -> bool:
        """Look at the metric where it is time to; whether patience is at its end."""
        config, validate = self.config, self.material.validate
        if validate is None or (done % config.validate_every and done != config.iterations):
            return False
        value = validate(self.average, self.plan) if self.accelerator.is_main_process or config.shard else float("inf")
        (value,) = broadcast_object_list([value])
        self.progress.looks.append(Look(iteration=done, value=value))
        self.accelerator.log({"metric": value}, step=done)
        if self.keeps_best and value <= self.progress.best.value:
            self.best.load_state_dict(self.average.state_dict())
        since = sum(look.iteration > self.progress.best.iteration for look in self.progress.looks)
        return bool(config.patience) and since >= config.patience

    def _finite(self) -> bool:
        nets = [part for part in self.parts.values() if not isinstance(part, Optimizer)]
        return all(bool(p.isfinite().all()) for net in nets for p in net.parameters() if p.requires_grad)

    def _resume(self) -> None:
        """To the last checkpoint. A run that begins anew saves at once, so that there is something to go back to."""
        found = checkpoint.load(self.saved, self.parts, settings=self.settings)
        scale_as(self.accelerator, found.state.get("scaling", {}))
        looks = [Look(iteration=step, value=value) for step, value in found.state.get("looks", [])]
        self.progress = Progress(found.step, found.state.get("retries", 0), looks)
        if not self.saved.exists():
            self.accelerator.wait_for_everyone()
            self._save()

    def _save(self) -> None:
        progress = self.progress
        looks = [(look.iteration, look.value) for look in progress.looks]
        state = {"retries": progress.retries, "looks": looks, "scaling": scaling(self.accelerator)}
        checkpoint.save(self.saved, self.parts, step=progress.done, settings=self.settings, state=state)

    def _go_back(self) -> None:
        """To the last checkpoint, for other random numbers."""
        retries = self.progress.retries + 1
        self._resume()
        if retries > MAX_RETRIES:
            raise ValueError(
                f"the weights did not stay finite, with {MAX_RETRIES + 1} draws of random numbers after iteration "
                f"{self.progress.done}; {self.way_out}"
            )
        self.progress.retries = retries


def adam(net: nn.Module, lr: float, betas: tuple[float, float]) -> Optimizer:
    """What every method's networks learn by.

    Args:
        net: whose weights learn.
        lr: the first learning rate.
        betas: of both moments.
    """
    return torch.optim.Adam(net.parameters(), lr=lr, betas=betas, fused=True)

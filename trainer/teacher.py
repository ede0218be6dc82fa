"""Train a teacher: a denoiser in any parametrisation, from nothing or from a network there is.

With the Lskip objective of S2-DMs (arXiv 2401.01520), and the curriculum and momentum decay of the consistency phenomenon
(arXiv 2404.07946).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle, Draft, check_new
from fewstep.artifact.card import inherited, write_card
from fewstep.artifact.digests import component_digest
from fewstep.artifact.manifest import Manifest, PlanEntry, check_name
from fewstep.artifact.records import Trained
from fewstep.data import Samples
from fewstep.data.inputs import Arrays
from fewstep.data.latents import Latents
from fewstep.models.decoder import save_decoder
from fewstep.models.denoiser import Denoiser, fresh_network, load_network, save_network, unet
from fewstep.models.families import family_of
from fewstep.models.families.field_transformer import field_transformer
from fewstep.sampling.solvers import heun
from fewstep.system.progress import Track, silent
from fewstep.trainer import checkpoint
from fewstep.trainer.batches import Loader, samples_of
from fewstep.trainer.configs import TeacherConfig, TuneConfig, plain_share
from fewstep.trainer.draws import Draws
from fewstep.trainer.levels import Curriculum, space_of
from fewstep.trainer.losses import lskip_loss
from fewstep.trainer.rates import rates
from fewstep.trainer.run import Material, Run, Validate, adam
from fewstep.trainer.shards import prepared

__all__ = ["TeacherRun", "Teaching", "train_teacher"]


def train_teacher(
    out: Path,
    samples: Samples,
    config: TuneConfig,
    *,
    start: str | None = None,
    name: str = "teacher",
    arrays: Arrays | None = None,
    validate: Validate | None = None,
    license: str | None = None,
    log: Path | None = None,
    track: Track = silent,
) -> Bundle:
    """Train on samples, or latents of images, and write a bundle with the network `name` and its 18-step Heun plan.

    Killed and started again with the same arguments, it goes on from its last checkpoint to the same weights, bit for bit.

    Args:
        out: where the bundle is to be or, with `start`, where it is.
        samples: from fewstep.trainer.batches.open_examples or Images.of.
        config: a TeacherConfig or, with `start`, a TuneConfig.
        start: a network of the bundle to go on from, which stays as it is.
        name: of the new network.
        arrays: what the labels of samples count, and what means "none", where the samples do not bring it.
        validate: a metric of the averaged weights and that plan, for the curve and the bundle's record.
        license: of the samples, in words, for the bundle's card.
        log: a directory for curves and sheets of samples, see fewstep.trainer.watch.

    Returns:
        The bundle, at `out` then.

    Raises:
        FileExistsError: when the bundle exists, and `start` names none of its networks.
        ValueError: for a name that it cannot have or has already, when a checkpoint of other settings is in the way, or samples
            that do not fit the network.
    """
    if (start is None) != isinstance(config, TeacherConfig):
        raise ValueError("a new network is made by a TeacherConfig, and one that is there goes on by a TuneConfig; give that")
    check_name(name)
    if start is None:
        check_new(out)
    else:
        _check_free(Bundle.load(out), name)
    given = Teaching(start=start, validate=validate, license=license, log=log, arrays=arrays or samples.arrays or None)
    with checkpoint.alone(checkpoint.checkpoint_path(out, name)):
        TeacherRun(out, name, samples, config, given).go(track)
    return Bundle.load(out)


def _check_free(bundle: Bundle, name: str) -> None:
    """Raises ValueError where a bundle has something of that name, which would be lost."""
    if name in bundle.manifest.components or name in bundle.manifest.plans:
        raise ValueError(f"{bundle.root.name} has {name!r} already; choose another name")


@dataclass(frozen=True)
class Teaching:
    """What a run is given besides samples and settings, see train_teacher.

    Args:
        start, arrays, validate, license, log: as for `train_teacher`.
    """

    start: str | None = None
    arrays: Arrays | None = None
    validate: Validate | None = None
    license: str | None = None
    log: Path | None = None


class TeacherRun(Run):
    """One training: its network, and what an update does."""

    config: TuneConfig

    def __init__(self, out: Path, name: str, samples: Samples, config: TuneConfig, given: Teaching) -> None:
        if config.compile and not (torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++"))):
            raise ValueError("compiling needs a C++ compiler here, and there is no g++; install one, or leave out --compile")
        origin = Bundle.load(out) if given.start else None
        samples = samples_of(origin, samples) if origin else _as_taken(samples, config)
        decoder = samples.decoder if isinstance(samples, Latents) else None
        material = Material(
            samples.signature, samples.state, samples, given.arrays, given.validate, decoder=decoder, log=given.log
        )
        super().__init__(out, name, config, material)
        self.given, self.samples = given, samples
        torch.manual_seed(config.seed)
        self.denoiser = load_network(origin, str(given.start)).train() if origin else _network(samples, config)
        self.tau = plain_share(config.tau, self.denoiser.parametrisation)
        ema = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.placed(self.denoiser, ema)
        self.plan = heun(self.denoiser.parametrisation.grid(18))
        optimizer = adam(self.denoiser, config.lr, (0.9, 0.99))
        parts: checkpoint.Parts = {"net": self.denoiser, "ema": ema, "optimizer": optimizer}
        about: dict[str, Any] = {"classes": list(samples.names)} if samples.names else {}
        if origin and given.start:
            about |= {"start": given.start, "start_sha256": component_digest(origin.manifest, given.start)}
        self.begin(parts, average=ema, learns={"net": self.denoiser}, tau=self.tau, **about)
        if config.compile:
            self.denoiser.compile()
        self.model = prepared(self.accelerator, self.denoiser)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.space = space_of(self.denoiser.parametrisation, mean=config.noise_mean, std=config.noise_std)
        self.curriculum = None if config.curriculum is None else Curriculum(config.curriculum)

    def update(self, step: int) -> Mapping[str, Tensor | float]:
        """One update of the network and of its average."""
        config, parts = self.config, self.draws(step)
        losses = [self._loss(draws, step / config.iterations) for draws in self.accumulated(self.model, parts)]
        rate = rates(config.schedule, step, config.iterations, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = config.lr * rate.lr, (rate.beta1, group["betas"][1])
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.move_average(self.denoiser, step)
        return {"loss": torch.stack(losses).mean(), "lr": config.lr * rate.lr}

    def _loss(self, draws: Draws, progress: float) -> Tensor:
        """Of a part of the batch. progress: the share of the run that is done."""
        config = self.config
        x0, labels = cast(Loader, self.loader)(draws)
        condition = self.conditions.dropped(self.conditions.of(labels), config.drop_label, draws.uniform)
        position = self.space.draw(draws, self.curriculum, progress)
        noise, other = self.normal(draws), self.normal(draws)
        other = noise if config.shared else other
        losses = lskip_loss(self.model, x0, position, noise, other, condition, self.space, skip=config.skip, tau=self.tau)
        return self.backward(losses)

    def keep(self, made: Denoiser) -> None:
        """The network, its plan and where it is from: in a new bundle or, where it went on from a network, in that one's."""
        samples, name = self.samples, self.name
        if self.given.start:
            target = Bundle.load(self.out).edit()
        else:
            target = Draft.create(self.out, samples.signature, state=samples.state)
        with target as draft:
            if isinstance(samples, Latents) and draft.manifest.decoder is None:
                save_decoder(draft, samples.load_autoencoder())
            save_network(draft, name, made)
            plan = name if self.given.start else "heun18"
            draft.manifest.plans[plan] = PlanEntry.of(self.plan, denoiser=name, solver="Heun, 18 steps")
            draft.manifest.default = plan
            draft.manifest.records.components[name] = self._record(draft.manifest)
            write_card(draft)

    def _record(self, manifest: Manifest) -> Trained:
        settings = dict(self.settings)
        settings.pop("classes", None)  # the bundle's signature has them
        about = {key: settings.pop(key) for key in ("mixed_precision", "data", "data_sha256", "samples")}
        rows = settings.pop("rows", None)
        start = {key: settings.pop(key, None) for key in ("start", "start_sha256")}
        made_from = [self.given.start] if self.given.start else []
        licenses: dict[str, Any] = {"license": self.given.license, "inherited_licenses": inherited(manifest, *made_from)}
        return Trained(**about, **start, **licenses, settings=settings, rows=rows, metrics=self.metrics())


def _as_taken(samples: Samples, config: TuneConfig) -> Samples:
    """Samples with their inputs in the order of the network that is asked for."""
    network = config.network if isinstance(config, TeacherConfig) else None
    if network is None:
        return samples
    return samples.made_from(family_of(str(network.get("_class_name"))).ordered(network, samples.signature.inputs))


def _network(samples: Samples, config: TuneConfig) -> Denoiser:
    """A fresh network for samples."""
    assert isinstance(config, TeacherConfig), "train_teacher asks for one where there is no start"
    inputs, parametrisation = samples.signature.inputs, config.parametrisation()
    flat = len(samples.state.axes) == 2
    patch = config.patch or (2 if flat else 1)
    if config.network is not None:
        _refuse_unused(config, ("channels", "layers", "attention"), "the network's own configuration says its sizes")
        return fresh_network(config.network, samples.state, inputs, parametrisation=parametrisation, patch=patch)
    if flat and all(each.choices is not None for each in inputs):
        return unet(
            samples.state,
            inputs,
            channels=config.channels,
            layers=config.layers,
            attention=config.attention,
            patch=patch,
            parametrisation=parametrisation,
        )
    why = f"a FieldTransformer is made for {samples.source}, whose sizes a --network says"
    _refuse_unused(config, ("channels", "layers", "attention", "patch"), why)
    return fresh_network(field_transformer(samples.state, inputs), samples.state, inputs, parametrisation=parametrisation)


def _refuse_unused(config: TeacherConfig, names: Sequence[str], why: str) -> None:
    """Raises ValueError for settings of the U-Net where none is made."""
    usual = TeacherConfig()
    for name in names:
        if getattr(config, name) != getattr(usual, name):
            raise ValueError(f"--{name} is of a U-Net, and {why}; leave it out")

"""A checkpoint of diffusers or of EDM as a teacher: its network and its own sampler in a bundle, and the proof of both.

What a checkpoint says is used, known to mean nothing, or refused by name; what it does not say is asked by an option.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, cast

from fewstep.artifact.bundle import Bundle, Draft, check_new
from fewstep.artifact.card import write_card
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Imported
from fewstep.artifact.signature import ImageOutput, Input, Signature
from fewstep.models.accounting import account, keys_of
from fewstep.models.decoder import check_decoder_class, pixels_per_latent, save_decoder
from fewstep.models.denoiser import Denoiser, check_call, save_network
from fewstep.models.edm_weights import is_edm, load_edm_weights
from fewstep.models.families import FAMILIES, check_fit, family_of, network_class
from fewstep.models.families.base import Asked, Pipeline
from fewstep.models.layout import Layout, find_layout
from fewstep.models.pretrained import load_part, load_single
from fewstep.models.proof import PIPELINES, Case, Proof, prove
from fewstep.models.schedulers import dynamic_mu, make_scheduler, parametrisation_of, plan_name, scheduler_plan
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.solvers import heun

__all__ = ["Checkpoint", "ImportOptions", "import_teacher", "read_checkpoint"]

FEW = 4  # steps of the short proof
MOST = 100  # steps of the plan that is written, where the pipeline's own are more: a table grows with their square


@dataclass(frozen=True)
class ImportOptions:
    """What a checkpoint does not say.

    Args:
        tokens: of a text condition.
        resolution: side of images in pixels, where the network takes any.
        null_class: it was trained without a class, too, which the last of a U-Net's classes, or EDM's zeros, stands for.
        steps: of the plan, where not the pipeline's own.
        guidance: of the plan, where not none, or of a network that embeds it.
        variant: of the files, such as fp16.
        license: in words.
        config: a directory with the configurations that belong to a single file.
    """

    tokens: int | None = None
    resolution: int | None = None
    null_class: bool = False
    steps: int | None = None
    guidance: float | None = None
    variant: str | None = None
    license: str | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a checkpoint.

    Args:
        denoiser: with its weights.
        image: what it makes.
        inputs: what that is made from.
        scheduler: its configuration, as its pipeline takes it.
        autoencoder: of diffusers; None for pixels.
        pipeline: the name of its class, where the checkpoint says so.
        mu: of a scheduler that shifts by the number of image tokens.
        notes: what is to be said of it, in sentences.
    """

    denoiser: Denoiser
    image: ImageOutput
    inputs: tuple[Input, ...]
    scheduler: dict[str, Any]
    autoencoder: Any = None
    pipeline: str | None = None
    mu: float | None = None
    notes: list[str] = field(default_factory=list)


def import_teacher(source: Path, out: Path, options: ImportOptions = ImportOptions()) -> tuple[Bundle, Proof]:
    """Start a bundle with the network of a checkpoint as `teacher`, and with its own scheduler as the default plan.

    Nothing in the checkpoint is executed.

    Args:
        source: a diffusers pipeline directory, a network with a scheduler beside it, a single file with the weights of a
            pipeline, or one with those of an ADM network of EDM.
        out: the bundle to write.
        options: what the checkpoint does not say.

    Returns:
        The bundle, and how near its plan ends to the checkpoint's own pipeline.

    Raises:
        FileExistsError: when `out` exists.
        FileNotFoundError: for a directory that is no pipeline's.
        ValueError: for a network, scheduler or autoencoder that fewstep does not drive, or where the pipeline and the plan end
            differently.
    """
    check_new(out)
    found = read_checkpoint(source, options)
    scheduler = make_scheduler(found.scheduler)
    parametrisation, own = found.denoiser.parametrisation, PIPELINES.get(found.pipeline or "", Pipeline(50))
    steps = options.steps or min(own.steps, MOST)
    embeds = "guidance_scale" in found.denoiser.constants
    scale = options.guidance if options.guidance is not None and not embeds else 1.0
    guidance = Guidance(scale)
    plan, name = (
        scheduler_plan(scheduler, parametrisation, steps, guidance, mu=found.mu, sigmas=own.sigmas),
        plan_name(scheduler, steps, guidance),
    )
    if steps < own.steps and options.steps is None:
        found.notes.append(f"{found.pipeline} takes {own.steps} steps; the plan {name} has {steps}, give --steps for others")
    with Draft.create(out, Signature(inputs=found.inputs, output=found.image)) as draft:
        if found.autoencoder is not None:
            save_decoder(draft, found.autoencoder)
        network, state = found.denoiser, draft.manifest.state
        check_fit(network.net, state, found.inputs, patch=network.patch, constants=network.constants)
        check_call(network, state, found.inputs)
        proof = _prove(found, scheduler, draft.manifest.state.shape, [Case(steps, scale), Case(own.steps, scale)], own)
        save_network(draft, "teacher", found.denoiser)
        solver = f"{type(scheduler).__name__} of the checkpoint, {steps} steps"
        draft.manifest.plans[name] = PlanEntry.of(plan, denoiser="teacher", solver=solver)
        draft.manifest.plans["heun18"] = PlanEntry.of(
            heun(parametrisation.grid(18)), denoiser="teacher", solver="Heun, 18 steps"
        )
        draft.manifest.default = name
        draft.manifest.records.components["teacher"] = Imported(
            source=source.resolve().name,
            pipeline=found.pipeline,
            scheduler=_recorded(found.scheduler, scheduler),
            mu=found.mu,
            proof=proof.dump(),
            notes=found.notes,
            license=options.license,
        )
        write_card(draft)
    return Bundle.load(out), proof


def read_checkpoint(source: Path, options: ImportOptions = ImportOptions()) -> Checkpoint:
    """Read a directory or a file; nothing is written.

    Args:
        source, options: as for `import_teacher`.

    Raises:
        FileNotFoundError: for a directory that is no pipeline's.
        ValueError: for what fewstep does not drive, or what neither the checkpoint nor an option says.
    """
    if source.is_file() and is_edm(source):
        return _of_edm(source, options)
    if source.is_file() and options.config is None:
        raise ValueError(
            f"{source} holds weights and no configurations; give --config a directory with those of its pipeline "
            "(unet/config.json, scheduler/scheduler_config.json, vae/config.json), as the repository it was made from has them"
        )
    layout = find_layout(cast(Path, options.config), source) if source.is_file() else find_layout(source)
    made = _network_class(layout.config)
    _refuse_inputs(layout.config, made.__name__)
    scheduler = _as_its_pipeline_takes_it(layout.scheduler, layout.pipeline)
    make_scheduler(scheduler)  # what is refused of it is, before gigabytes are read
    found = load_single(made, source, layout.network) if layout.weights else load_part(made, layout.network, options.variant)
    net, notes = found.module, list(found.notes)
    autoencoder = _autoencoder(layout, options, notes)
    family = family_of(made.__name__)
    image = _image(net.config, autoencoder, options, family.patch)
    asked = _asked(layout, image, options, notes)
    inputs, constants = family.read(net, asked)
    mu = _mu(scheduler, net, image, autoencoder, family.patch)
    denoiser = Denoiser(net, parametrisation=parametrisation_of(scheduler, mu=mu), patch=family.patch, constants=constants)
    return Checkpoint(denoiser, image, inputs, scheduler, autoencoder, layout.pipeline, mu, notes)


def _asked(layout: Layout, image: ImageOutput, options: ImportOptions, notes: list[str]) -> Asked:
    """What a family is to know of a checkpoint."""
    return Asked(
        root=str(layout.root),
        tokens=options.tokens,
        null_class=options.null_class,
        guidance=options.guidance,
        default_guidance=PIPELINES.get(layout.pipeline or "", Pipeline(0, 8.5)).guidance,
        size=(image.height, image.width),
        about=layout.about,
        index=layout.index,
        notes=notes,
    )


def _of_edm(path: Path, options: ImportOptions) -> Checkpoint:
    """A state dict, with the scheduler of diffusers that belongs to it."""
    denoiser, inputs = load_edm_weights(path, null_class=options.null_class)
    config = cast(Any, denoiser.net).config
    image = ImageOutput(channels=config.in_channels, height=config.sample_size, width=config.sample_size)
    return Checkpoint(denoiser, image, inputs, {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})


def _network_class(config: dict[str, Any]) -> Any:
    """The class of a network's configuration, every key of it accounted for."""
    if "_class_name" not in config:
        raise ValueError("the network's config.json has no _class_name, so diffusers did not write it; name another checkpoint")
    claimed = next((family for family in FAMILIES.values() if family.claims(config)), None)
    made = network_class(claimed.kind if claimed else str(config["_class_name"]))
    account(config, made, neutral=claimed.neutral if claimed else {})
    return made


def _refuse_inputs(config: dict[str, Any], name: str) -> None:
    """Raises ValueError for a network that is given more than fewstep gives it: an image to change, a mask, other classes."""
    for key, driven in family_of(name).driven.items():
        if config.get(key) not in driven:
            raise ValueError(f"this {name} has {key} {config[key]!r}, for which it is told what fewstep does not tell it")
    given, made = config.get("in_channels"), config.get("out_channels")
    if given and made and given > made:
        raise ValueError(
            f"this {name} takes {given} channels and gives {made}: the others are an image or a mask that it changes "
            "(inpainting, upscaling, editing), which fewstep does not drive"
        )


def _as_its_pipeline_takes_it(scheduler: dict[str, Any], pipeline: str | None) -> dict[str, Any]:
    """A scheduler's configuration as the pipeline's class changes it when it is made."""
    if pipeline == "StableDiffusionPipeline":  # what its first checkpoints lack
        keys = keys_of(getattr(importlib.import_module("diffusers"), str(scheduler.get("_class_name")), object))
        changes = {"steps_offset": 1, "clip_sample": False}
        return scheduler | {key: value for key, value in changes.items() if key in keys}
    if pipeline == "DDIMPipeline":
        return scheduler | {"_class_name": "DDIMScheduler"}
    return scheduler


def _recorded(config: dict[str, Any], scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON has it, which knows no infinity: without those that it has by default."""
    defaults = {key: p.default for key, p in inspect.signature(type(scheduler).__init__).parameters.items()}
    return {key: value for key, value in config.items() if value not in (inf, -inf) or value != defaults.get(key)}


def _image(config: Any, autoencoder: Any, options: ImportOptions, patch: int) -> ImageOutput:
    """What the bundle's images are."""
    factor = pixels_per_latent(autoencoder) if autoencoder is not None else 1
    channels = autoencoder.config.out_channels if autoencoder is not None else config.in_channels // patch**2
    side = config.get("sample_size")
    if side is None:
        if options.resolution is None:
            raise ValueError("the network takes images of any size (its sample_size is null); say which with --resolution")
        return ImageOutput(channels=channels, height=options.resolution, width=options.resolution)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    image = ImageOutput(channels=channels, height=height * factor, width=width * factor)
    if options.resolution not in (None, image.height, image.width):
        raise ValueError(f"the network makes images of {image.height}x{image.width}; leave --resolution out")
    return image


def _mu(scheduler: dict[str, Any], net: Any, image: ImageOutput, autoencoder: Any, patch: int) -> float | None:
    """mu of a scheduler that shifts by the number of image tokens."""
    factor = (pixels_per_latent(autoencoder) if autoencoder is not None else 1) * patch * (net.config.get("patch_size") or 1)
    return dynamic_mu(make_scheduler(scheduler).config, (image.height // factor) * (image.width // factor))


def _autoencoder(layout: Layout, options: ImportOptions, notes: list[str]) -> Any:
    """The pipeline's autoencoder; None where it works on pixels."""
    if layout.autoencoder is None:
        return None
    config = layout.about("vae", "config.json")
    kind = str(config.get("_class_name"))
    check_decoder_class(kind)
    made = getattr(importlib.import_module("diffusers"), kind)
    account(config, made)
    found = (
        load_single(made, layout.weights, layout.autoencoder)
        if layout.weights
        else load_part(made, layout.autoencoder, options.variant)
    )
    notes += found.notes
    return found.module


def _prove(found: Checkpoint, scheduler: Any, shape: tuple[int, ...], cases: list[Case], own: Pipeline) -> Proof:
    """The short case is guided as the pipeline is by default, where it can be."""
    signature = Signature(inputs=found.inputs, output=found.image)
    guidance = own.guidance if signature.guidable and "guidance_scale" not in found.denoiser.constants else 1.0
    if found.pipeline == "DiTPipeline" and signature.labels and signature.labels.classes != 1000:
        guidance = 1.0  # it takes 1000 for "none", whatever the network has
    few = Case(_few(scheduler, found), guidance)
    return prove(
        found.denoiser,
        scheduler,
        list(dict.fromkeys([few, *sorted(cases)])),
        inputs=found.inputs,
        shape=shape,
        mu=found.mu,
        pipeline=found.pipeline,
        autoencoder=found.autoencoder,
    )


def _few(scheduler: Any, found: Checkpoint) -> int:
    """A small number of steps that the scheduler takes: some methods need several to begin."""
    for steps in range(FEW, 2 * FEW):
        try:
            scheduler_plan(scheduler, found.denoiser.parametrisation, steps, mu=found.mu)
        except ValueError:
            if steps == 2 * FEW - 1:
                raise
        else:
            return steps
    raise AssertionError

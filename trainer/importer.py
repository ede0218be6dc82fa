"""A checkpoint of diffusers or of EDM as a teacher: its network in a bundle, what it estimates, and the proof.

The proof walks diffusers' own scheduler around the raw network, and a plan around D, from the same noise: same states.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.bundle import Bundle, Draft, check_new
from fewstep.card import write_card
from fewstep.decoder import load_autoencoder, pixels_per_latent, save_decoder
from fewstep.denoiser import Denoiser, save_network
from fewstep.guidance import guided
from fewstep.json_object import read_object
from fewstep.labels import named
from fewstep.manifest import Condition, ImageSpec, PlanEntry
from fewstep.networks import network_class
from fewstep.parametrisation import Betas, Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.plan import sample
from fewstep.solvers import ddim, heun
from fewstep.trainer.edm_weights import load_edm_weights

__all__ = ["Checkpoint", "Proof", "import_teacher", "parametrisation_of", "read_checkpoint"]

PROOF_STEPS = 4
TOLERANCE = 2e-3  # of the largest number of the images; both loops round differently
VP = """
DDPM DDIM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete
DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep
"""
KINDS = {f"{name}Scheduler": "vp" for name in VP.split()} | {
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a directory holds: a denoiser, what images and conditions it is for, its scheduler's settings, its autoencoder."""

    denoiser: Denoiser
    image: ImageSpec
    condition: Condition
    scheduler: dict[str, Any]
    autoencoder: Any = None


@dataclass(frozen=True)
class Proof:
    """The largest difference of the last states of both loops, and the largest number in them."""

    max_error: float
    scale: float
    steps: int = PROOF_STEPS


def import_teacher(source: Path, out: Path, *, tokens: int | None = None, licence: str | None = None) -> tuple[Bundle, Proof]:
    """Start a bundle with the network of a checkpoint as `teacher`, and with its 18-step Heun plan.

    source: a diffusers pipeline directory, or a file with the weights of an ADM network of EDM. Nothing in it is executed.
    tokens: of a text condition, where no tokenizer says how many. licence: of the checkpoint, in words, for the bundle's card.

    Raises FileExistsError when `out` exists, FileNotFoundError for a directory that is no pipeline's, ValueError for a network,
    scheduler or autoencoder that fewstep does not drive, or where both loops differ.
    """
    check_new(out)
    found = _of_edm(source) if source.is_file() else read_checkpoint(source, tokens=tokens)
    with Draft.create(out, image=found.image, condition=found.condition) as draft:
        if found.autoencoder is not None:
            save_decoder(draft, found.autoencoder)
        proof = prove(found, draft.manifest.state_shape)
        save_network(draft, "teacher", found.denoiser)
        plan = heun(found.denoiser.parametrisation.grid(18))
        draft.manifest.plans["heun18"] = PlanEntry.of(plan, network="teacher", solver="Heun, 18 steps")
        draft.manifest.default = "heun18"
        draft.manifest.provenance.networks["teacher"] = {
            "imported": source.resolve().name,
            "scheduler": found.scheduler.get("_class_name"),
            "proof": asdict(proof),
            "licence": licence,
        }
        write_card(draft)
    return Bundle.load(out), proof


def read_checkpoint(directory: Path, *, tokens: int | None = None) -> Checkpoint:
    """Read a pipeline directory: model_index.json, unet or transformer, scheduler, and vae where there is one.

    Raises FileNotFoundError or ValueError as import_teacher does.
    """
    index = _json(directory / "model_index.json", "a diffusers pipeline directory")
    part = next((name for name in ("unet", "transformer") if (directory / name).is_dir()), None)
    if part is None:
        raise ValueError(f"{directory} has neither unet/ nor transformer/; fewstep imports the network of a pipeline")
    kind = network_class(str(_json(directory / part / "config.json", "a network")["_class_name"]))
    scheduler = _json(directory / "scheduler" / "scheduler_config.json", "a pipeline's scheduler")
    with _readable(directory / part):
        net = kind.from_pretrained(directory / part, local_files_only=True, use_safetensors=True).float().eval()
    autoencoder = _autoencoder(directory, index)
    condition = named(_condition(net, directory, tokens), index.get("id2label"))
    side = net.config.sample_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    image = ImageSpec(channels=net.config.in_channels, height=height, width=width)
    time_ids: tuple[float, ...] = ()
    if autoencoder is not None:
        factor = pixels_per_latent(autoencoder)
        image = ImageSpec(channels=autoencoder.config.out_channels, height=height * factor, width=width * factor)
    if condition.pooled and kind.__name__ == "UNet2DConditionModel":
        time_ids = tuple(float(n) for n in (image.height, image.width, 0, 0, image.height, image.width))
    denoiser = Denoiser(net, parametrisation=parametrisation_of(scheduler), time_ids=time_ids)
    return Checkpoint(denoiser, image, condition, scheduler, autoencoder)


def _of_edm(path: Path) -> Checkpoint:
    """A state dict, with the scheduler of diffusers that belongs to it."""
    denoiser, condition = load_edm_weights(path)
    config = cast(Any, denoiser.net).config
    image = ImageSpec(channels=config.in_channels, height=config.sample_size, width=config.sample_size)
    return Checkpoint(denoiser, image, condition, {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})


def parametrisation_of(scheduler: dict[str, Any]) -> Parametrisation:
    """What a network estimates, by the configuration of its scheduler. Raises ValueError where fewstep has no word for it."""
    name = str(scheduler.get("_class_name"))
    kind = KINDS.get(name)
    predicts = scheduler.get("prediction_type", "epsilon")
    if kind is None:
        raise ValueError(f"the scheduler is a {name}; fewstep reads {', '.join(KINDS)}")
    if kind == "flow":
        return Flow(shift=scheduler.get("shift", 1.0))
    if kind == "edm":
        if predicts != "epsilon":
            raise ValueError(f"this {name} has prediction_type {predicts!r}; of EDM networks, fewstep drives 'epsilon'")
        return Edm(sigma_data=scheduler.get("sigma_data", 0.5), time_scale=0.25)
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if scheduler.get(key):
            raise ValueError(f"this {name} sets {key}, which fewstep's noise schedules do not; it has linear and scaled_linear")
    schedule = scheduler.get("beta_schedule", "linear")
    if schedule not in ("linear", "scaled_linear"):
        raise ValueError(f"this {name} has beta_schedule {schedule!r}; fewstep has linear and scaled_linear")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    betas = Betas(kind=schedule, start=start, end=end, steps=scheduler.get("num_train_timesteps", 1000))
    if predicts not in ("epsilon", "v_prediction"):
        raise ValueError(f"this {name} has prediction_type {predicts!r}; fewstep drives 'epsilon' and 'v_prediction'")
    return Eps(betas=betas) if predicts == "epsilon" else Velocity(betas=betas)


def prove(found: Checkpoint, shape: tuple[int, int, int]) -> Proof:
    """Walk both loops from one noise. Raises ValueError where they differ."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *shape, generator=generator)
    condition = tuple(
        torch.zeros(1, dtype=torch.int64) if s.dtype == "int64" else torch.randn(1, *s.shape, generator=generator)
        for s in found.condition.inputs()
    )
    plan = ddim(found.denoiser.parametrisation.grid(PROOF_STEPS))
    with torch.no_grad():
        theirs = _walk(found, noise, condition)
        ours = sample(guided(found.denoiser, condition, condition), float(plan.sigmas[0]) * noise, plan)
    proof = Proof(float((ours - theirs).abs().max()), float(theirs.abs().max()))
    if not proof.max_error <= TOLERANCE * proof.scale:
        raise ValueError(
            f"this network does not make what it makes with diffusers ({proof.max_error:.2g} apart, of {proof.scale:.2g}); "
            "its scheduler says what it estimates: compare scheduler_config.json with how it was trained"
        )
    return proof


def _walk(found: Checkpoint, noise: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    """diffusers' scheduler around the raw network, in first-order steps on the grid that plans use."""
    parametrisation, denoiser = found.denoiser.parametrisation, found.denoiser
    grid = parametrisation.grid(PROOF_STEPS)
    config = {key: value for key, value in found.scheduler.items() if not key.startswith("_")}
    diffusers = importlib.import_module("diffusers")
    if isinstance(parametrisation, Edm):
        config |= {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_schedule": "karras", "final_sigmas_type": "zero"}
        scheduler = diffusers.EDMEulerScheduler.from_config(config)
        scheduler.set_timesteps(PROOF_STEPS)
    elif isinstance(parametrisation, Flow):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config, shift=1.0, use_dynamic_shifting=False)
        scheduler.set_timesteps(sigmas=grid.sigmas[:-1].tolist())
    else:
        plain = {"clip_sample": False, "thresholding": False, "timestep_spacing": "trailing", "set_alpha_to_one": True}
        scheduler = diffusers.DDIMScheduler.from_config(config, **plain)
        scheduler.set_timesteps(PROOF_STEPS)
    x = float(grid.sigmas[0]) * noise
    for t in scheduler.timesteps:
        into = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = denoiser.call(denoiser.net, into, torch.as_tensor(t).reshape(-1).float(), condition, denoiser.time_ids)
        x = scheduler.step(out[:, : x.shape[1]], t, x).prev_sample
    return x


def _condition(net: Any, directory: Path, tokens: int | None) -> Condition:
    """What the network is conditioned on, by its class and configuration."""
    config, kind = net.config, type(net).__name__
    if kind == "UNet2DModel":
        classes = config.num_class_embeds
        return Condition(kind="labels", classes=classes - 1) if classes else Condition(kind="none")  # the last one means "none"
    if kind == "DiTTransformer2DModel":
        return Condition(kind="labels", classes=config.num_embeds_ada_norm)
    if tokens is None:
        told = directory / "tokenizer" / "tokenizer_config.json"
        if kind != "UNet2DConditionModel" or not told.is_file():
            raise ValueError(f"how many tokens a prompt of this {kind} has is not written in {directory}; say so with --tokens")
        tokens = int(_json(told, "a tokenizer")["model_max_length"])
    if kind == "SD3Transformer2DModel":
        return Condition(
            kind="embeddings", tokens=tokens, width=config.joint_attention_dim, pooled=config.pooled_projection_dim
        )
    pooled = 0
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    width = config.cross_attention_dim
    return Condition(
        kind="embeddings", tokens=tokens, width=width[0] if isinstance(width, list | tuple) else width, pooled=pooled
    )


def _autoencoder(directory: Path, index: dict[str, Any]) -> Any:
    """The pipeline's autoencoder; None where it works on pixels."""
    if not (directory / "vae").is_dir():
        return None
    with _readable(directory / "vae"):
        return load_autoencoder(directory / "vae", str(index.get("vae", [None, None])[1]))


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    """What diffusers says, over many lines, of files that are missing or no safetensors, in a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{directory} could not be read ({reason}); fewstep reads safetensors: save it anew with save_pretrained"
        ) from None


def _json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, so this is not {what}; save one with diffusers' save_pretrained")
    return read_object(path)

"""Pipelines that diffusers saved, imported: the same images from the same noise, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from small import STABLE, small
from test_cli import fewstep, refused

from fewstep.bundle import Bundle
from fewstep.calibration.inputs import Inputs
from fewstep.calibration.teacher import Teacher
from fewstep.guidance import Guidance
from fewstep.parametrisation import Betas, Edm, Eps, Flow, Velocity
from fewstep.plan import Plan
from fewstep.solvers import ddim
from fewstep.trainer.importer import import_teacher, parametrisation_of

# Random networks of eps at a level that is nearly pure noise make numbers in the hundreds, and their rounding shows.
GENTLE = {"beta_schedule": "scaled_linear", "beta_end": 0.002}


def _save(path: Path, net: Any, scheduler: Any, **parts: Any) -> Path:
    """A pipeline directory as save_pretrained lays it out."""
    part = "unet" if "UNet" in type(net).__name__ else "transformer"
    index = {"_class_name": "Pipeline", part: ["diffusers", type(net).__name__]}
    for name, module in {part: net, "scheduler": scheduler, **parts}.items():
        module.save_pretrained(path / name)
        index[name] = ["diffusers", type(module).__name__]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def _start(noise: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Unit noise of which plans make the state that pipelines start from: the noise itself, not sigma_0 times it."""
    return noise[:, None] / float(plan.sigmas[0])


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_ddim_pipelines_make_the_same_images(predicts: str, tmp_path: Path) -> None:
    net = small("plain").denoiser.net
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type=predicts, **GENTLE)
    pipeline = DDIMPipeline(net, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    expected = pipeline(3, torch.Generator().manual_seed(5), num_inference_steps=6, output_type="np").images
    bundle, proof = import_teacher(tmp_path / "pipeline", tmp_path / "a.bundle")
    assert proof.max_error < 1e-3 * proof.scale
    teacher = Teacher(bundle)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    plan = ddim(teacher.denoiser.parametrisation.grid(6))
    made = teacher.sample(plan, Inputs(_start(noise, plan), (), ()))
    np.testing.assert_allclose((made / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), expected, atol=5e-3)


def test_a_latent_class_conditional_pipeline_with_guidance_makes_the_same_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    net.eval()  # else it drops labels
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **GENTLE)
    pipeline = DiTPipeline(net, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    expected = pipeline([7], 4.0, torch.Generator().manual_seed(5), num_inference_steps=4, output_type="np").images
    bundle, _ = import_teacher(tmp_path / "pipeline", tmp_path / "a.bundle")
    assert (bundle.manifest.image.shape, bundle.manifest.state_shape) == ((3, 16, 16), (4, 8, 8))
    teacher = Teacher(bundle)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    plan = ddim(teacher.denoiser.parametrisation.grid(4), Guidance(4.0))
    images = teacher.images(plan, Inputs(_start(noise, plan), (torch.tensor([7]),), (torch.tensor([1000]),)))
    wanted = (expected * 255).round().transpose(0, 3, 1, 2)
    assert np.abs(images - wanted).max() <= 1


@pytest.mark.parametrize(
    ("name", "scheduler", "parametrisation"),
    [
        ("unet", EDMEulerScheduler(sigma_data=0.7), Edm(sigma_data=0.7, time_scale=0.25)),
        ("sd3", FlowMatchEulerDiscreteScheduler(shift=3.0), Flow(shift=3.0)),
        ("text", EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), Eps(betas=STABLE)),
        ("sdxl", DDIMScheduler(prediction_type="v_prediction"), Velocity(betas=Betas())),
    ],
    ids=["edm", "flow", "eps", "v"],
)
def test_every_kind_of_scheduler_and_network(name: str, scheduler: Any, parametrisation: Any, tmp_path: Path) -> None:
    pipeline = _save(tmp_path / "pipeline", small(name).denoiser.net, scheduler)
    done = fewstep("import", pipeline, "--out", "a.bundle", "--tokens", 5, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["max_error"] < 1e-2
    bundle = Bundle.load(tmp_path / "a.bundle")
    bundle.verify()
    assert bundle.manifest.networks["teacher"].parametrisation == parametrisation
    assert bundle.manifest.condition.kind == small(name).condition.kind
    assert bundle.manifest.provenance.networks["teacher"]["imported"] == "pipeline"


def test_what_cannot_be_imported_gets_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    pipeline = _save(tmp_path / "pipeline", small("text").denoiser.net, DDIMScheduler())
    assert "is not a diffusers pipeline directory" not in refused("import", pipeline, cwd=tmp_path)
    assert "say so with --tokens" in refused("import", pipeline, cwd=tmp_path)
    assert "model_index.json is not there" in refused("import", tmp_path / "nowhere", cwd=tmp_path)
    (pipeline / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "KarrasVeScheduler"}')
    assert "the scheduler is a KarrasVeScheduler" in refused("import", pipeline, "--tokens", 5, cwd=tmp_path)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").rename(pipeline / "unet" / "diffusion_pytorch_model.bin")
    assert "fewstep reads safetensors" in refused("import", pipeline, "--tokens", 5, cwd=tmp_path)
    (pipeline / "unet" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert "the network is a FluxTransformer2DModel" in refused("import", pipeline, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pipeline"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ({"rescale_betas_zero_snr": True}, "sets rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 0.2]}, "sets trained_betas"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "of EDM networks, fewstep drives 'epsilon'"),
    ],
)
def test_schedulers_that_fewstep_has_no_word_for(config: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parametrisation_of({"_class_name": "DDIMScheduler"} | config)

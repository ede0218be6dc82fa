"""Pipelines of diffusers, imported: the last states of the real pipeline, its scheduler as configured, from the same noise."""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from pipelines import CASES, STABLE, Tiny, save, vae
from real_pipeline import last_state
from small import small
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Imported
from fewstep.calibration.inputs import Drawn
from fewstep.calibration.teacher import Teacher
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.decoder import Decoder, as_output
from fewstep.models.families.base import Pipeline
from fewstep.models.importer import ImportOptions, import_teacher
from fewstep.models.proof import PIPELINES, Case, prove
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity

STEPS = 5
NAMES = {  # of the default plan of five steps
    "sd-pndm": "pndm5_w3",
    "sd-ddim": "ddim5_w3",
    "sd-old-ddim": "ddim5_w3",
    "sd-v-zero-snr": "ddim5_w3",
    "sd-euler-trailing": "euler5_w3",
    "sd-dpm-karras": "dpmsolver_karras5_w3",
    "sdxl-euler": "euler5_w3",
    "sdxl-turbo": "euler_ancestral5_w3",
    "sd3-static": "flow_match_euler5_w3",
    "sd3-dynamic": "flow_match_euler5_w3",
    "ddpm": "ddpm5",
    "ddim-of-ddpm": "ddim5",
    "ddpm-cosine": "ddpm5",
    "lcm": "lcm5",
    "dit": "dit",
}
NAMES["dit"] = "ddim5_w3"


def imported(case: str, tmp_path: Path) -> tuple[Tiny, Bundle]:
    """A case as a bundle; guided by 3 where it can be."""
    tiny = CASES[case]()
    guidance = None if tiny.network in ("plain", "lcm") else 3.0
    options = ImportOptions(tokens=5 if tiny.network not in ("plain", "dit") else None, steps=STEPS, guidance=guidance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PIPELINES, tiny.pipeline, PIPELINES[tiny.pipeline]._replace(steps=STEPS))  # not a thousand here
        bundle, proof = import_teacher(save(tmp_path / "pipeline", tiny), tmp_path / "a.bundle", options)
    assert {steps for steps, *_ in proof.cases} == {4, STEPS}
    assert proof.max_error < 1e-4 * proof.scale
    return CASES[case](), bundle


def inputs(bundle: Bundle, seed: int = 5) -> Drawn:
    """Noise (1, draws + 1, C, H, W), one more than a plan needs, for schedulers that draw and do not use it; conditions."""
    manifest, generator = bundle.manifest, torch.Generator().manual_seed(seed)
    drawn = torch.tensor(noise([seed], (bundle.plan(str(manifest.default)).draws + 1, *manifest.state.shape)))
    if labels := manifest.signature.labels:
        return Drawn(drawn, (torch.tensor([7]),), (torch.tensor([labels.classes]),))
    specs = manifest.signature.tensors(guided=False)
    both = [tuple(torch.randn(1, *spec.shape, generator=generator) for spec in specs) for _ in range(2)]
    return Drawn(drawn, *both)


def imported_of(bundle: Bundle) -> Imported:
    """What is known of the teacher's origin."""
    record = bundle.manifest.records.components["teacher"]
    assert isinstance(record, Imported)
    return record


@pytest.mark.parametrize("case", CASES)
def test_the_default_plan_ends_where_the_real_pipeline_does(case: str, tmp_path: Path) -> None:
    tiny, bundle = imported(case, tmp_path)
    assert bundle.manifest.default == NAMES[case]
    plan, some = bundle.plan(NAMES[case]), inputs(bundle)
    scale = 1.0 if tiny.network in ("plain", "lcm") else 3.0
    expected = last_state(tiny, STEPS, scale, some.noise[0], some.condition, some.null)
    given = Drawn(some.noise[:, : plan.draws], some.condition, some.null)
    made = Teacher(bundle).sample(plan, given)
    assert float((made - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("case", "layout"), [("sd-dpm-karras", "step"), ("sdxl-turbo", "loop"), ("ddpm", "unrolled"), ("ddim-of-ddpm", "loop")]
)
def test_graphs_make_the_images_of_the_real_pipeline(case: str, layout: Any, tmp_path: Path) -> None:
    """Timesteps of its own, noise on the way, a clip alone and a clip beside what is not clipped; all with a start."""
    tiny, bundle = imported(case, tmp_path)
    bundle = export_graphs(bundle, [NAMES[case]], ["fp32"], layouts=[layout], batched_guidance=False)
    assert all(result.ok for result in check_graphs(bundle))
    some = inputs(bundle)
    scale = 1.0 if tiny.network == "plain" else 3.0
    end = last_state(tiny, STEPS, scale, some.noise[0], some.condition, some.null)
    manifest = bundle.manifest
    decoder = Decoder(vae(), manifest.decoder) if manifest.decoder else None
    with torch.no_grad():
        expected = as_output(end, manifest.output, decoder)
    names = [spec.name for spec in manifest.signature.tensors(guided=bundle.plan(NAMES[case]).guided)]
    given = {name: value.numpy() for name, value in zip(names, (*some.condition, *some.null), strict=True)}
    made = Generator(bundle, plan=NAMES[case])(seeds=[5], **given)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_default_steps_and_guidance_are_those_of_diffusers() -> None:
    if importlib.util.find_spec("transformers") is None:
        names = [name for name in PIPELINES if name in ("DDPMPipeline", "DDIMPipeline", "DiTPipeline")]
    else:
        names = list(PIPELINES)
    for name in names:
        takes = inspect.signature(getattr(diffusers, name).__call__).parameters
        scale = takes["guidance_scale"].default if "guidance_scale" in takes else 1.0
        assert PIPELINES[name] == Pipeline(takes["num_inference_steps"].default, scale, PIPELINES[name].sigmas)


def test_a_pipeline_of_more_steps_than_a_plan_should_have_gets_fewer_and_says_so(tmp_path: Path) -> None:
    save(tmp_path / "ddpm", Tiny("DDPMPipeline", "plain", diffusers.DDPMScheduler(num_train_timesteps=200), latent=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PIPELINES, "DDPMPipeline", PIPELINES["DDPMPipeline"]._replace(steps=150))
        said = fewstep("import", "ddpm", "--out", "a.bundle", cwd=tmp_path).stderr
    assert "DDPMPipeline takes 150 steps; the plan ddpm100 has 100, give --steps for others" in said
    assert "150 steps" in (tmp_path / "a.bundle" / "card.md").read_text()  # and that many were proven


def test_a_proof_that_would_take_too_long_is_left_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.models.proof.SECONDS", 1e-6)
    bundle, proof = import_teacher(save(tmp_path / "dit", CASES["dit"]()), tmp_path / "a.bundle")
    assert [case.steps for case in proof.cases] == [4]
    assert "50 steps, which would take about" in proof.left_out[0]
    assert "not compared: 50 steps" in bundle.file("card.md").read_text()


def test_what_ends_elsewhere_is_refused(tmp_path: Path) -> None:
    """DDIMPipeline takes any scheduler for DDIM: a plan of DDPM is not what it does."""
    denoiser, none = small("plain")
    about: dict[str, Any] = {"inputs": none, "shape": (4, 8, 8), "pipeline": "DDIMPipeline"}
    with pytest.raises(ValueError, match=r"4 steps end elsewhere than with DDIMPipeline \(.* apart, of 1\)"):
        prove(denoiser, diffusers.DDPMScheduler(), [Case(4)], **about)


def test_a_network_whose_images_hang_on_the_last_digit_of_their_noise_is_proven_by_few_steps(tmp_path: Path) -> None:
    """As a fresh U-Net's do over many steps of a DDIM that clips: there is nothing to compare, and that is what is said."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1, **blocks)
    DDIMPipeline(net, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    said = fewstep("import", "ddim", "--out", "a.bundle", cwd=tmp_path).stdout
    few, many = imported_of(Bundle.load(tmp_path / "a.bundle")).proof["cases"]
    assert (few["steps"], many["steps"]) == (4, 50)
    assert few["max_error"] < 1e-4 * few["scale"]
    assert few["own"] is None
    assert many["own"] > 0.1
    assert "(4 steps); with 50 steps by" in " ".join(said.split())
    assert "from itself when its noise changes in the last digit" in " ".join(said.split())


@pytest.mark.parametrize(
    ("name", "scheduler", "parametrisation"),
    [
        ("unet", EDMEulerScheduler(sigma_data=0.7), Edm(sigma_data=0.7, time_scale=0.25)),
        ("sd3", FlowMatchEulerDiscreteScheduler(shift=3.0), Flow(shift=3.0)),
        ("text", EulerDiscreteScheduler(**STABLE), Eps(betas=Betas(kind="scaled_linear", start=0.00085, end=0.012))),
        ("sdxl", DDIMScheduler(prediction_type="v_prediction"), Velocity(betas=Betas())),
    ],
    ids=["edm", "flow", "eps", "v"],
)
def test_every_kind_of_scheduler_and_network(name: str, scheduler: Any, parametrisation: Any, tmp_path: Path) -> None:
    save(tmp_path / "pipeline", Tiny("SomeOtherPipeline", name, scheduler, latent=False))
    done = fewstep("import", "pipeline", "--out", "a.bundle", "--tokens", 5, "--steps", 6, "--json", cwd=tmp_path)
    proof = json.loads(done.stdout)["proof"]
    assert proof["max_error"] < 1e-4 * proof["scale"]
    not_checked = "(no pipeline of diffusers ran, so the family's own call is not checked)"
    assert proof["against"] == f"{type(scheduler).__name__} around the network {not_checked}"
    assert not_checked in (tmp_path / "a.bundle" / "card.md").read_text()
    bundle = Bundle.load(tmp_path / "a.bundle")
    bundle.verify()
    assert bundle.manifest.denoisers["teacher"].parametrisation == parametrisation
    assert imported_of(bundle).source == "pipeline"
    assert "heun18" in bundle.manifest.plans


def test_from_a_checkpoint_to_an_image_by_the_commands_that_are_printed(tmp_path: Path) -> None:
    save(tmp_path / "ddim", CASES["ddim-of-ddpm"]())
    command = ["import", "ddim", "--out", "a.bundle", "--steps", "3"]
    ran = []
    while command:
        ran.append(command[0])
        said = fewstep(*command, cwd=tmp_path).stderr
        following = [line.removeprefix("next: fewstep ") for line in said.splitlines() if line.startswith("next: fewstep ")]
        command = following[0].split() if following and len(ran) < 4 else []
    assert ran[:3] == ["import", "export", "generate"]
    assert (tmp_path / "grid.png").exists()
    fewstep("check", "a.bundle", cwd=tmp_path)
    assert json.loads(fewstep("generate", "a.bundle", "--samples", 3, "--json", cwd=tmp_path).stdout)["seeds"] == [0, 1, 2]
    asked = ["--scheduler", "UniPCMultistepScheduler", "--steps", 6, "--precision", "fp32"]
    fewstep("export", "a.bundle", *asked, cwd=tmp_path)
    assert Bundle.load(tmp_path / "a.bundle").plan("unipc6").rows == 6
    assert "has 'unipc6' already" in refused("export", "a.bundle", "--solver", "ddim", "--name", "unipc6", cwd=tmp_path)

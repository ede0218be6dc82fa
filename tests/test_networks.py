"""Every network class: the images of diffusers' schedulers, back from a bundle bit for bit, refused where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from small import IMAGE, LABELS, NAMES, POOLED, TEXT, given, small
from torch import Tensor

from fewstep.artifact.bundle import MANIFEST, Bundle, Draft
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import ArrayInput, ImageOutput, Input, LabelInput, Signature
from fewstep.models.denoiser import Denoiser, load_network, on_meta, save_network, weights
from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.parametrisation import Edm, Eps, Flow
from fewstep.sampling.plan import sample
from fewstep.sampling.schedule import flow
from fewstep.sampling.solvers import ddim

NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def _pipeline(scheduler: Any, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loop of a diffusers pipeline."""
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t), t, x).prev_sample
    return x


def _ddim_scheduler(denoiser: Denoiser, steps: int) -> DDIMScheduler:
    betas = denoiser.parametrisation.betas
    scheduler = DDIMScheduler(
        beta_schedule=betas.kind,
        beta_start=betas.start,
        beta_end=betas.end,
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type="epsilon" if denoiser.parametrisation.kind == "eps" else "v_prediction",
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("name", ["plain", "dit", "text", "sdxl"])
def test_ddim_gives_the_images_of_diffusers(name: str) -> None:
    denoiser, told = small(name)
    net, inputs = denoiser.net, given(told, 2)
    call = {
        "plain": lambda x, t: net(x, t),
        "dit": lambda x, t: net(x, t.expand(2), class_labels=inputs[0]),
        "text": lambda x, t: net(x, t, inputs[0]),
        "sdxl": lambda x, t: net(x, t, inputs[0], added_cond_kwargs={"text_embeds": inputs[1], "time_ids": time_ids}),
    }[name]
    time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    with torch.no_grad():
        expected = _pipeline(_ddim_scheduler(denoiser, 5), lambda x, t: call(x, t).sample[:, :4])
        # Their pipelines start from unit noise as the state of the first level, our tools from sigma_0 times that.
        found = sample(guided(denoiser, inputs, ()), NOISE, ddim(denoiser.parametrisation.grid(5)))
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_steps_give_the_images_of_diffusers(shift: float) -> None:
    denoiser, told = small("sd3")
    inputs = given(told, 2)
    plan = ddim(flow(4, shift))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=plan.sigmas[:-1].tolist())
    with torch.no_grad():
        expected = _pipeline(scheduler, lambda x, t: denoiser.net(x, inputs[0], inputs[1], t.expand(2)).sample)
        found = sample(guided(denoiser, inputs, ()), float(plan.sigmas[0]) * NOISE, plan)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_guidance_with_embeddings_is_the_pipelines_doubled_batch() -> None:
    denoiser, told = small("sd3")
    inputs, null = given(told, 2), given(told, 2, seed=1)
    plan = ddim(flow(3), Guidance(4.0))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=plan.sigmas[:-1].tolist())
    both = [torch.cat(pair) for pair in zip(null, inputs, strict=True)]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        without, with_text = denoiser.net(torch.cat([x, x]), both[0], both[1], t.expand(4)).sample.chunk(2)
        return without + 4.0 * (with_text - without)

    with torch.no_grad():
        found = sample(guided(denoiser, inputs, null), NOISE, plan)
        torch.testing.assert_close(found, _pipeline(scheduler, predict), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_level_for_all_is_a_level_each_and_everything_given_matters(name: str) -> None:
    denoiser, told = small(name)
    inputs = given(told, 2)
    with torch.no_grad():
        estimate = denoiser(NOISE, 0.6, *inputs)
        torch.testing.assert_close(estimate, denoiser(NOISE, torch.tensor([0.6, 0.6]), *inputs))
        assert not torch.allclose(
            denoiser.evaluate(NOISE, torch.tensor(5.0), *inputs), denoiser.evaluate(NOISE, torch.tensor(900.0), *inputs)
        )
        for i, tensor in enumerate(inputs):
            changed = (tensor + 1) % 4 if tensor.dtype == torch.int64 else tensor + 1
            assert not torch.allclose(estimate, denoiser(NOISE, 0.6, *inputs[:i], changed, *inputs[i + 1 :]))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_the_label_after_the_last_class_means_none(name: str) -> None:
    denoiser, _ = small(name)
    with torch.no_grad():
        assert torch.isfinite(denoiser(NOISE, 0.6, torch.tensor([3, 3]))).all()
        with pytest.raises(IndexError):
            denoiser(NOISE, 0.6, torch.tensor([4, 4]))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Bundle]:
    def saved(denoiser: Denoiser, told: Sequence[Input], image: ImageOutput = IMAGE) -> Bundle:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bundle"
        with Draft.create(path, Signature(inputs=told, output=image)) as draft:
            save_network(draft, "teacher", denoiser)
        return Bundle.load(path)

    return saved


def wide(name: str, *shape: int) -> ArrayInput:
    return ArrayInput(name=name, shape=shape, null="given")


def tensors(denoiser: Denoiser) -> list[tuple[str, Tensor]]:
    """Weights, and what is computed when a network is made."""
    return [*denoiser.named_parameters(), *denoiser.named_buffers()]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_comes_back_bit_for_bit_and_files_hold_tensors_and_json_only(name: str, save: Callable[..., Bundle]) -> None:
    denoiser, told = small(name)
    bundle = save(denoiser, told)
    assert {Path(f).suffix for f in bundle.manifest.files} == {".json", ".safetensors"}
    loaded, inputs = load_network(bundle, "teacher"), given(told, 2)
    for (key, tensor), (_, was) in zip(tensors(loaded), tensors(denoiser), strict=True):
        assert torch.equal(tensor, was), key
    with torch.no_grad():  # where weights lie in memory decides how some CPUs add up
        torch.testing.assert_close(loaded(NOISE, 0.6, *inputs), denoiser(NOISE, 0.6, *inputs), atol=1e-6, rtol=1e-6)
    assert loaded.parametrisation == denoiser.parametrisation
    assert loaded.architecture == denoiser.architecture == small(name, seed=1).denoiser.architecture
    assert str(bundle.root) not in save(loaded, told).file("components/teacher/config.json").read_text()


def test_weights_in_several_files_come_back(save: Callable[..., Bundle]) -> None:
    denoiser, told = small("sd3")
    bundle = save(denoiser, told)
    with bundle.edit() as draft:
        draft.remove("components/teacher")
        denoiser.net.save_pretrained(draft.new("components/teacher/config.json").parent, max_shard_size="20KB")
    bundle = Bundle.load(bundle.root)
    assert sum(f.endswith(".safetensors") for f in bundle.manifest.files) > 2
    for name, tensor in weights(load_network(bundle, "teacher")).items():
        assert torch.equal(tensor, weights(denoiser)[name])


def test_weights_that_lack_a_tensor_are_refused(save: Callable[..., Bundle]) -> None:
    bundle = save(*small("dit"))
    with bundle.edit() as draft:
        path = draft.root / "components/teacher/config.json"
        text = path.read_text()
        draft.new("components/teacher/config.json").write_text(json.dumps(json.loads(text) | {"num_layers": 3}))
    with pytest.raises(ValueError, match=r"do not match its config.json in \d+ tensors, the first is transformer_blocks.2"):
        load_network(Bundle.load(bundle.root), "teacher")


@pytest.mark.parametrize("name", NAMES)
def test_on_the_meta_device_there_is_the_same_architecture_without_weights(name: str) -> None:
    denoiser, told = small(name)
    for real in (denoiser, Denoiser(denoiser.net.half(), parametrisation=denoiser.parametrisation)):
        copy = on_meta(real)
        assert copy.architecture == real.architecture
        have, want = weights(copy), weights(real)
        assert {k: (t.shape, t.dtype) for k, t in have.items()} == {k: (t.shape, t.dtype) for k, t in want.items()}
        assert all(t.is_meta for t in have.values())
    inputs = [t.to("meta") for t in given(told, 2)]
    if name != "sdxl":
        assert copy(NOISE.to("meta"), 0.6, *inputs).shape == NOISE.shape


def test_weights_hold_the_position_table_that_state_dicts_leave_out() -> None:
    denoiser, _ = small("dit")
    assert set(weights(denoiser)) - set(denoiser.state_dict()) == {"net.pos_embed.pos_embed"}
    assert weights(small("sdxl").denoiser)["time_ids"].tolist() == [64, 64, 0, 0, 64, 64]


@pytest.mark.parametrize(
    ("name", "image", "told", "message"),
    [
        ("unet", {"channels": 3}, LABELS, "UNet2DModel has in_channels 4, the bundle needs 3"),
        ("unet", {"height": 16}, LABELS, r"sample_size \(8, 8\), the bundle needs \(16.0, 8.0\)"),
        ("unet", {}, (LabelInput(classes=4),), "num_class_embeds 4, the bundle needs 5"),
        ("unet", {}, (), "num_class_embeds 4, the bundle needs None"),
        ("plain", {}, LABELS, "num_class_embeds None, the bundle needs 4"),
        ("unet", {}, TEXT, "UNet2DModel takes labels, if any, the bundle has prompt_embeds"),
        ("dit", {}, (LabelInput(classes=4),), "num_embeds_ada_norm 3, the bundle needs 4"),
        ("dit", {}, (), "DiTTransformer2DModel takes labels, the bundle has nothing"),
        ("text", {}, (wide("prompt_embeds", 5, 13),), "cross_attention_dim 12, the bundle needs 13"),
        ("text", {}, POOLED, "time_ids 0, the bundle needs 6"),
        ("sdxl", {}, TEXT, "time_ids 6, the bundle needs 0"),
        ("sdxl", {}, (*TEXT, wide("pooled_prompt_embeds", 7)), "projection_class_embeddings_input_dim 30, the bundle needs 31"),
        ("sd3", {}, TEXT, "takes prompt_embeds, pooled_prompt_embeds, the bundle has prompt_embeds;"),
        ("sd3", {}, LABELS, "SD3Transformer2DModel takes prompt_embeds, pooled_prompt_embeds, the bundle has labels"),
        (
            "text",
            {},
            POOLED[1:],
            "UNet2DConditionModel takes prompt_embeds, pooled_prompt_embeds, if any, the bundle has pooled",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_bundle_is_refused(
    name: str, image: dict[str, int], told: Sequence[Input], message: str, save: Callable[..., Bundle]
) -> None:
    denoiser, fitting = small(name)
    with pytest.raises(ValueError, match=message):
        save(denoiser, told, IMAGE.model_copy(update=image))
    manifest = save(denoiser, fitting).root / MANIFEST
    output = IMAGE.model_copy(update=image)
    changed = {"signature": Signature(inputs=told, output=output).model_dump(), "state": output.state.model_dump()}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    with pytest.raises(ValueError, match=message):
        load_network(Bundle.load(manifest.parent), "teacher")


def test_a_module_of_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="the network is a Linear; this version of fewstep drives DiTTransformer2DModel, "):
        Denoiser(torch.nn.Linear(2, 2), parametrisation=Flow())


@pytest.mark.parametrize(("ours", "other"), [("sd3", Eps()), ("dit", Edm(sigma_data=0.5)), ("unet", Flow())])
def test_a_plan_in_other_coordinates_is_refused(ours: str, other: Any, save: Callable[..., Bundle]) -> None:
    bundle = save(*small(ours))
    message = r"the plan 'wrong' has alpha .* not in the (edm|eps|flow) coordinates of its network"
    with pytest.raises(ValueError, match=message), bundle.edit() as draft:
        draft.manifest.plans["wrong"] = PlanEntry.of(ddim(other.grid(3)), denoiser="teacher", solver="ddim")

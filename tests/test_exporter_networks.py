"""Every class of network that fewstep drives, random and small, in every layout; and decoders baked behind the sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from small import IMAGE, PATH, ROBOT, VOLUME, field, given, small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import Layout, Manifest, PlanEntry
from fewstep.artifact.signature import ArrayOutput, ImageOutput, Signature
from fewstep.exporter.export import export_graphs
from fewstep.exporter.graph.layouts import step, unroll
from fewstep.exporter.graph.loop import loop
from fewstep.exporter.graph.network import trace_network, with_weights
from fewstep.exporter.parity import check_graphs
from fewstep.models.decoder import load_decoder, save_decoder
from fewstep.models.denoiser import save_network
from fewstep.runtime import Generator
from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.plan import Plan, sample
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import heun


def _run(model: ir.Model, feeds: dict[str, Any], directory: Path, outputs: list[str]) -> list[np.ndarray]:
    ir.save(model, directory / "graph.onnx")
    session = ort.InferenceSession(directory / "graph.onnx", providers=["CPUExecutionProvider"])
    return session.run(outputs, {i.name: feeds[i.name] for i in session.get_inputs()})


@pytest.mark.parametrize("name", ["dit", "sdxl", "sd3"])
def test_every_layout_gives_torchs_result_and_shares_what_depends_on_the_condition(name: str, tmp_path: Path) -> None:
    denoiser, told = small(name)
    signature = Signature(inputs=told, output=IMAGE)
    manifest = Manifest(name=name, signature=signature, state=IMAGE.state)
    network = with_weights(trace_network(denoiser, manifest, "fp32"), denoiser, manifest)
    grid = denoiser.parametrisation.grid(3)
    plan = heun(grid, Guidance(2.0, 0.0, float(grid.levels[1])))
    assert plan.rows < plan.nfe < 2 * plan.rows
    noise = torch.randn(3, plan.draws, *IMAGE.shape, generator=torch.Generator().manual_seed(1))
    tensors, null = given(told, 3), given(told, 3, seed=5)
    if name == "dit":
        null = (torch.full((3,), 3),)
    with torch.no_grad():
        expected = sample(guided(denoiser, tensors, null), float(plan.sigmas[0]) * noise[:, 0], plan).numpy()
    feeds: dict[str, Any] = {"noise": noise.numpy()}
    names = [spec.name for spec in signature.tensors(guided=True)]
    feeds |= {key: tensor.numpy() for key, tensor in zip(names, (*tensors, *null), strict=False)}
    close = {"rtol": 0, "atol": 2e-5 * np.abs(expected).max()}
    straight = unroll(network, plan, IMAGE)
    for model in (straight, loop(network, plan, IMAGE, batched_guidance=True)):
        (made,) = _run(model, feeds, tmp_path, ["sample"])
        np.testing.assert_allclose(made, expected, **close)
    # The noise embedding is folded; SDXL's sizes, which are embedded the same way, are constants that all rows share.
    assert sum(node.op_type == "Sin" for node in straight.graph) == (2 if name == "sdxl" else 0)
    if name == "sdxl":  # keys and values of the text are the same in all rows: once for each condition
        keys = [node.name for node in straight.graph if str(node.name).endswith("attn2.to_k")]
        assert len(keys) == 2 * len({key.split("/")[1] for key in map(str, keys)})
    ir.save(step(network), tmp_path / "step.onnx")
    session = ort.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])

    def denoise(x: np.ndarray, sigma: float, scale: float = 1.0) -> np.ndarray:
        numbers = np.array(network.scales(sigma), np.float32)
        row = {"x": x, "scales": numbers, "guidance_scale": np.array(scale, np.float32)}
        return session.run(["denoised"], {i.name: (feeds | row)[i.name] for i in session.get_inputs()})[0]

    walked = sample(denoise, np.float32(plan.sigmas[0]) * feeds["noise"][:, 0], plan)
    np.testing.assert_allclose(walked, expected, **close)


def _latent_bundle(path: Path, autoencoder: Any) -> tuple[Bundle, Plan]:
    denoiser, told = small("sd3")
    plan = heun(denoiser.parametrisation.grid(2), Guidance(2.0))
    with Draft.create(path, Signature(inputs=told, output=ImageOutput(channels=3, height=16, width=16))) as draft:
        save_decoder(draft, autoencoder)
        save_network(draft, "teacher", denoiser)
        draft.manifest.plans["heun2"] = PlanEntry.of(plan, denoiser="teacher", solver="Heun")
        draft.manifest.default = "heun2"
    return Bundle.load(path), plan


KL = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 1.5,
    "shift_factor": 0.2,
}
KL |= {f"{way}_block_types": (f"{way.title()}{coder}Block2D",) * 2 for way, coder in (("down", "Encoder"), ("up", "Decoder"))}
TINY = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}


@pytest.mark.parametrize(("kind", "config", "layout"), [(AutoencoderKL, KL, "unrolled"), (AutoencoderTiny, TINY, "step")])
def test_a_latent_models_graph_ends_in_images(kind: Any, config: dict[str, Any], layout: Layout, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle, plan = _latent_bundle(tmp_path / "latent.bundle", kind(**config))
    exported = export_graphs(bundle, ["heun2"], ["fp32"], layouts=[layout], batched_guidance=True)
    (result,) = check_graphs(exported)
    assert result.ok
    assert len(result.drift) == plan.rows
    golden = np.load(exported.file("golden.npz"))
    latent = torch.tensor(golden["heun2/states"][-1])
    with torch.no_grad():
        np.testing.assert_allclose(golden["heun2/sample"], load_decoder(exported)(latent).numpy(), atol=1e-6)
    prompts = {spec.name: golden[f"heun2/{spec.name}"] for spec in exported.manifest.signature.tensors(guided=True)}
    assert set(prompts) == {
        f"{which}{name}" for which in ("", "negative_") for name in ("prompt_embeds", "pooled_prompt_embeds")
    }
    batch = len(prompts["prompt_embeds"])
    generator = Generator(exported, graph=result.graph, plan="heun2")
    images = generator(seeds=range(batch), **prompts)
    assert images.shape == (batch, 16, 16, 3)
    one = generator(seeds=[2], **{name: value[2:3] for name, value in prompts.items()})
    assert np.abs(images[2].astype(int) - one[0].astype(int)).max() <= 1
    with pytest.raises(ValueError, match=r"guided away from negative_prompt_embeds \(1, 5, 12\), which is missing"):
        generator(
            seeds=[0], prompt_embeds=prompts["prompt_embeds"][:1], pooled_prompt_embeds=prompts["pooled_prompt_embeds"][:1]
        )
    with pytest.raises(ValueError, match=r"pooled_prompt_embeds has shape \(2, 6\) for 2 seeds, got \(4, 6\)"):
        generator(seeds=[0, 1], **{k: v if k == "pooled_prompt_embeds" else v[:2] for k, v in prompts.items()})


@pytest.mark.parametrize("output", [PATH, VOLUME], ids=["one axis", "three axes"])
def test_arrays_of_any_rank_come_in_their_units_from_every_layout(output: ArrayOutput, tmp_path: Path) -> None:
    """Told a label, whose last number means none, and an array, whose zeros do."""
    signature = Signature(inputs=ROBOT, output=output)
    plan = heun(karras(3, 0.5, 20.0), Guidance(2.0, 1.0))
    assert plan.rows < plan.nfe < 2 * plan.rows
    with Draft.create(tmp_path / "robot.bundle", signature) as draft:
        save_network(draft, "policy", field(signature))
        draft.manifest.plans["heun3"] = PlanEntry.of(plan, denoiser="policy", solver="Heun")
        draft.manifest.default = "heun3"
    layouts: list[Layout] = ["unrolled", "loop", "step"]
    bundle = export_graphs(Bundle.load(tmp_path / "robot.bundle"), ["heun3"], ["fp32"], layouts=layouts)
    results = check_graphs(bundle)
    assert {result.graph for result in results} == {"heun3.fp32", "heun3.loop.fp32", "policy.step.fp32"}
    assert all(result.ok and result.psnr_db > 90 for result in results)
    told = {"task": [0, 2, 1], "observation": np.random.default_rng(0).standard_normal((3, 5))}
    made = [Generator(bundle, graph=result.graph, plan="heun3")(seeds=[3, 4, 5], **told) for result in results]
    for values in made:
        assert values.dtype == np.float32
        assert values.shape == (3, *output.tensor.shape)
        np.testing.assert_allclose(values, made[0], rtol=0, atol=1e-4 * np.abs(values).max())
    session = ort.InferenceSession(bundle.file("graphs/heun3.fp32.onnx"), providers=["CPUExecutionProvider"])
    golden = bundle.references()["heun3"]
    values, free = session.run(["values", "sample"], {i.name: golden[i.name] for i in session.get_inputs()})
    for i, column in enumerate(output.columns):
        np.testing.assert_allclose(values[..., i], column.mean + column.std * free[:, i], rtol=1e-5, atol=1e-5 * column.std)
    none = Generator(bundle, graph="heun3.fp32", plan="heun3")(seeds=[3, 4, 5])
    assert np.abs(none - made[0]).max() > 1e-3 * np.abs(made[0]).max()  # what it is told matters
    zeros = {"task": None, "observation": np.zeros((3, 5))}
    np.testing.assert_array_equal(none, Generator(bundle, graph="heun3.fp32", plan="heun3")(seeds=[3, 4, 5], **zeros))

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
from small import IMAGE, given, small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import ImageSpec, Layout, Manifest, PlanEntry
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
from fewstep.sampling.solvers import heun


def _run(model: ir.Model, feeds: dict[str, Any], directory: Path, outputs: list[str]) -> list[np.ndarray]:
    ir.save(model, directory / "graph.onnx")
    session = ort.InferenceSession(directory / "graph.onnx", providers=["CPUExecutionProvider"])
    return session.run(outputs, {i.name: feeds[i.name] for i in session.get_inputs()})


@pytest.mark.parametrize("name", ["dit", "sdxl", "sd3"])
def test_every_layout_gives_torchs_result_and_shares_what_depends_on_the_condition(name: str, tmp_path: Path) -> None:
    denoiser, condition = small(name)
    manifest = Manifest(name=name, image=IMAGE, condition=condition)
    network = with_weights(trace_network(denoiser, manifest, "fp32"), denoiser, manifest)
    grid = denoiser.parametrisation.grid(3)
    plan = heun(grid, Guidance(2.0, 0.0, float(grid.levels[1])))
    assert plan.rows < plan.nfe < 2 * plan.rows
    noise = torch.randn(3, plan.draws, *IMAGE.shape, generator=torch.Generator().manual_seed(1))
    tensors = given(condition, 3)
    null = (torch.full((3,), condition.classes),) if condition.kind == "labels" else given(condition, 3, seed=5)
    with torch.no_grad():
        expected = sample(guided(denoiser, tensors, null), float(plan.sigmas[0]) * noise[:, 0], plan).numpy()
    feeds: dict[str, Any] = {"noise": noise.numpy()}
    feeds |= {spec.name: t.numpy() for spec, t in zip(condition.inputs(), tensors, strict=True)}
    feeds |= {spec.name: t.numpy() for spec, t in zip(condition.null_inputs(), null, strict=False)}
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

    def denoise(x: np.ndarray, sigma: float, weight: float = 1.0) -> np.ndarray:
        row = {"x": x, "scales": np.array(network.scales(sigma), np.float32), "weight": np.array(weight, np.float32)}
        return session.run(["denoised"], {i.name: (feeds | row)[i.name] for i in session.get_inputs()})[0]

    walked = sample(denoise, np.float32(plan.sigmas[0]) * feeds["noise"][:, 0], plan)
    np.testing.assert_allclose(walked, expected, **close)


def _latent_bundle(path: Path, autoencoder: Any) -> tuple[Bundle, Plan]:
    denoiser, condition = small("sd3")
    plan = heun(denoiser.parametrisation.grid(2), Guidance(2.0))
    with Draft.create(path, image=ImageSpec(channels=3, height=16, width=16), condition=condition) as draft:
        save_decoder(draft, autoencoder)
        save_network(draft, "teacher", denoiser)
        draft.manifest.plans["heun2"] = PlanEntry.of(plan, network="teacher", solver="Heun")
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
    condition = {key: golden[f"heun2/{key}"] for key in ("embeddings", "pooled", "null_embeddings", "null_pooled")}
    batch = len(condition["embeddings"])
    generator = Generator(exported, graph=result.graph, plan="heun2")
    images = generator(seeds=range(batch), embeddings=condition)
    assert images.shape == (batch, 16, 16, 3)
    one = generator(seeds=[2], embeddings={name: value[2:3] for name, value in condition.items()})
    assert np.abs(images[2].astype(int) - one[0].astype(int)).max() <= 1
    with pytest.raises(
        ValueError, match=r"takes embeddings of prompts \(embeddings, null_embeddings, null_pooled, pooled\), got"
    ):
        generator(seeds=[0], embeddings={"embeddings": condition["embeddings"][:1]})
    with pytest.raises(ValueError, match=r"pooled has shape \(2, 6\) for 2 seeds, got \(4, 6\)"):
        generator(seeds=[0, 1], embeddings={k: v if k == "pooled" else v[:2] for k, v in condition.items()})

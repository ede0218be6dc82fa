"""Graphs against torch: the same numbers in every layout, the promised evaluations, one copy of the weights, all folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from fewstep.artifact.manifest import Manifest
from fewstep.artifact.signature import ImageOutput, Input, LabelInput, Signature
from fewstep.exporter.graph.evaluation import Network
from fewstep.exporter.graph.layouts import postprocess, step, unroll
from fewstep.exporter.graph.loop import loop
from fewstep.exporter.graph.network import trace_network, with_weights
from fewstep.models.denoiser import Denoiser, unet
from fewstep.sampling.guidance import Guidance, guided
from fewstep.sampling.plan import Plan, sample
from fewstep.sampling.schedule import karras, uniform
from fewstep.sampling.solvers import ddim, dpmpp_2m, few_step, heun

IMAGE, LABELS = ImageOutput(channels=1, height=8, width=8), (LabelInput(classes=3),)
GRID = karras(4, 0.002, 80.0)


def _manifest(inputs: Sequence[Input]) -> Manifest:
    return Manifest(name="small", signature=Signature(inputs=tuple(inputs), output=IMAGE), state=IMAGE.state)


PLANS = {
    "ddim": ddim(GRID),
    "heun": heun(GRID),
    "dpmpp_2m": dpmpp_2m(GRID),
    "few_step": few_step(uniform(3, 2.5)),
    "guided": ddim(GRID, Guidance(2.0)),
    "interval": heun(GRID, Guidance(2.0, 0.1, 20.0)),
}
MANIFEST = _manifest(LABELS)
LAYOUTS: dict[str, Callable[..., ir.Model]] = {"unrolled": unroll, "loop": loop}


def _denoiser(seed: int, inputs: Sequence[Input] = LABELS) -> Denoiser:
    """Two channels in each of its 8 norm groups: in groups of one, the norm would wipe out label and noise level."""
    torch.manual_seed(seed)
    return unet(IMAGE.state, inputs, channels=(16,), layers=1, attention=True, patch=1).eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """Traced with one network of the architecture, weights of another."""
    traces = {precision: trace_network(_denoiser(0), MANIFEST, precision) for precision in ("fp32", "fp16")}
    return {precision: with_weights(traced, _denoiser(1), MANIFEST) for precision, traced in traces.items()}


def _save(model: ir.Model, directory: Path) -> Path:
    path = directory / "graph.onnx"
    ir.save(model, path)
    return path


def _session(model: ir.Model, directory: Path) -> ort.InferenceSession:
    return ort.InferenceSession(_save(model, directory), providers=["CPUExecutionProvider"])


def _torch(plan: Plan, noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
    draws = [torch.tensor(noise[:, i]) for i in range(plan.draws)]
    denoise = guided(_denoiser(1), (torch.tensor(labels),), (torch.full((len(labels),), 3),))
    with torch.no_grad():
        return sample(denoise, float(plan.sigmas[0]) * draws[0], plan, draws[1:]).numpy()


def _inputs(plan: Plan, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    noise = rng.standard_normal((batch, plan.draws, *IMAGE.shape)).astype(np.float32)
    return {"noise": noise, "labels": rng.integers(0, 4, batch)}  # 3 means "none"


def test_the_label_matters_to_these_networks_far_beyond_the_limits() -> None:
    noise = _inputs(PLANS["guided"], 3)["noise"]
    made = [_torch(PLANS["guided"], noise, np.full(3, label)) for label in range(4)]
    assert min(np.abs(a - b).max() for i, a in enumerate(made) for b in made[:i]) > 0.05


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 3e-2)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "batched_guidance"),
    [
        (name, batched_guidance)
        for name, plan in PLANS.items()
        for batched_guidance in ([False, True] if plan.guided else [False])
    ],
)
def test_one_graph_gives_torchs_images_at_every_batch_size(
    name: str, batched_guidance: bool, layout: str, precision: str, limit: float, networks: dict[str, Network], tmp_path: Path
) -> None:
    plan = PLANS[name]
    session = _session(LAYOUTS[layout](networks[precision], plan, IMAGE, batched_guidance=batched_guidance), tmp_path)
    for batch in (1, 2, 5):
        feeds = _inputs(plan, batch)
        images, floats = session.run(["images", "sample"], feeds)
        wanted = _torch(plan, **feeds)
        assert np.abs(floats - wanted).max() < limit * max(1, np.abs(wanted).max())  # random networks leave [-1, 1]
        expected = np.round(np.clip((floats + 1) * 127.5, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
        assert images.dtype == np.uint8
        assert np.abs(images.astype(int) - expected).max() <= 1  # a tie may round either way after the last bit
        assert (images == expected).mean() > 0.99


@pytest.mark.parametrize("name", PLANS)
def test_one_step_graph_walks_every_plan(name: str, networks: dict[str, Network], tmp_path: Path) -> None:
    plan, network = PLANS[name], networks["fp32"]
    session = _session(step(network), tmp_path)
    assert [i.name for i in session.get_inputs()] == ["x", "scales", "guidance_scale", "labels"]
    feeds = _inputs(plan, 3)

    def denoise(x: np.ndarray, sigma: float, scale: float = 1.0) -> np.ndarray:
        row = {"scales": np.array(network.scales(sigma), np.float32), "guidance_scale": np.array(scale, np.float32)}
        return session.run(["denoised"], {"x": x, "labels": feeds["labels"]} | row)[0]

    noise = feeds["noise"]
    last = sample(denoise, np.float32(plan.sigmas[0]) * noise[:, 0], plan, list(noise[:, 1:].swapaxes(0, 1)))
    assert np.abs(last - _torch(plan, **feeds)).max() < 1e-4
    images = _session(postprocess(IMAGE.shape, IMAGE), tmp_path).run(["images"], {"x": last})[0]
    baked = _session(unroll(network, plan, IMAGE), tmp_path).run(["images"], feeds)[0]
    assert np.abs(images.astype(int) - baked.astype(int)).max() <= 1


def test_a_batch_larger_than_traced_and_larger_than_torch_guards_works(networks: dict[str, Network], tmp_path: Path) -> None:
    plan = PLANS["few_step"]
    session = _session(unroll(networks["fp32"], plan, IMAGE), tmp_path)
    feeds = _inputs(plan, 100)
    assert np.abs(session.run(["sample"], feeds)[0] - _torch(plan, **feeds)).max() < 1e-4


def _count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def _evaluations(model: ir.Model) -> int:
    """Copies of the network's first convolution, wherever they stand."""
    return sum(str(node.name).endswith("/conv_in") for node in model.graph.all_nodes())


@pytest.mark.parametrize("name", PLANS)
def test_the_graph_holds_exactly_the_evaluations_of_the_plan(name: str, networks: dict[str, Network]) -> None:
    plan, network = PLANS[name], networks["fp32"]
    assert _evaluations(unroll(network, plan, IMAGE)) == plan.nfe
    assert _evaluations(unroll(network, plan, IMAGE, batched_guidance=True)) == plan.rows  # of twice the size where guided
    assert _evaluations(loop(network, plan, IMAGE)) == (2 if plan.guided else 1)
    everywhere = bool((plan.guidance != 1).all())
    assert _evaluations(loop(network, plan, IMAGE, batched_guidance=True)) == (2 if plan.guided and not everywhere else 1)


def test_an_interval_that_leaves_a_part_out_saves_evaluations() -> None:
    assert PLANS["interval"].rows < PLANS["interval"].nfe < 2 * PLANS["interval"].rows


def test_in_a_loop_the_unconditional_evaluation_stands_behind_an_if(networks: dict[str, Network]) -> None:
    assert _count(loop(networks["fp32"], PLANS["interval"], IMAGE))["If"] == 1
    assert _count(loop(networks["fp32"], PLANS["guided"], IMAGE))["If"] == 0
    assert _count(loop(networks["fp32"], PLANS["ddim"], IMAGE))["Loop"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_are_stored_once_and_compute_in_the_asked_precision(
    precision: str, layout: str, networks: dict[str, Network], tmp_path: Path
) -> None:
    sizes = {}
    for name in ("few_step", "heun"):
        written = LAYOUTS[layout](networks[precision], PLANS[name], IMAGE)
        onnx.checker.check_model(onnx.load(_save(written, tmp_path)), full_check=True)
        initializers = [value for graph in written.graphs() for value in graph.initializers.values()]
        assert len({i.name for i in initializers}) == len(initializers)
        sizes[name] = sum(i.const_value.nbytes for i in initializers)
        types = Counter(i.const_value.dtype for i in initializers if i.name.endswith("conv_in.weight"))
        assert types == {ir.DataType.FLOAT if precision == "fp32" else ir.DataType.FLOAT16: 1}
    assert sizes["heun"] < 1.15 * sizes["few_step"]


def test_zero_coefficients_write_no_nodes(networks: dict[str, Network], tmp_path: Path) -> None:
    """DDIM: per row, 1 product into the network, 2 for D = skip x + out F, 2 for x' = a x + b D."""
    count = {}
    for n in (2, 3):
        nodes = onnx.load(_save(unroll(networks["fp32"], ddim(karras(n, 0.002, 80.0)), IMAGE), tmp_path)).graph.node
        count[n] = Counter(node.op_type for node in nodes if "/" not in node.name)
    assert count[3]["Mul"] - count[2]["Mul"] == 5
    assert count[3]["Add"] - count[2]["Add"] == 2


def test_nothing_that_depends_on_the_noise_level_alone_is_left(networks: dict[str, Network]) -> None:
    """No noise embedding, no layer behind it, no shapes: what is left of an evaluation starts at the image."""
    network = networks["fp32"]
    whole = Counter(node.op_type for node in network.traced.nodes)
    assert min(whole[op] for op in ("Sin", "Cos", "Gemm")) > 0
    model = unroll(network, PLANS["ddim"], IMAGE)
    left = _count(model)
    assert not {"Sin", "Cos", "Gemm", "Shape", "Expand"} & left.keys()
    assert not [name for name in model.graph.initializers if "time_emb" in name or "class_embedding" in name]
    blocks = sum(name.endswith("time_emb_proj") for name, _ in _denoiser(0).named_modules())
    assert left["Gather"] == 1 + PLANS["ddim"].rows * blocks  # the noise, and one line by label per residual block
    assert sum(left.values()) < PLANS["ddim"].rows * len(network.traced.nodes) * 0.95


def test_tables_of_labels_that_would_outgrow_the_weights_are_not_made(tmp_path: Path) -> None:
    """With many classes only what no label enters is folded; the image is the same."""
    many = (LabelInput(classes=2000),)
    manifest = _manifest(many)
    denoiser = _denoiser(1, many)
    network = with_weights(trace_network(denoiser, manifest, "fp32"), denoiser, manifest)
    plan = ddim(karras(2, 0.002, 80.0), Guidance(2.0))
    model = unroll(network, plan, IMAGE)
    assert not {"Sin", "Cos"} & _count(model).keys()
    assert _count(model)["Gemm"] > 0
    assert sum(value.const_value.nbytes for value in model.graph.initializers.values()) < 1.1 * network.traced.bytes(
        network.weights
    )
    feeds = _inputs(plan, 3) | {"labels": np.array([0, 1999, 7])}
    denoise = guided(denoiser, (torch.tensor(feeds["labels"]),), (torch.full((3,), 2000),))
    with torch.no_grad():
        expected = sample(denoise, 80.0 * torch.tensor(feeds["noise"][:, 0]), plan).numpy()
    assert np.abs(_session(model, tmp_path).run(["sample"], feeds)[0] - expected).max() < 1e-4


def test_a_network_without_inputs_needs_no_labels_and_takes_no_guidance(tmp_path: Path) -> None:
    manifest = _manifest(())
    denoiser = _denoiser(1, ())
    network = with_weights(trace_network(denoiser, manifest, "fp32"), denoiser, manifest)
    session = _session(unroll(network, ddim(GRID), IMAGE), tmp_path)
    assert [i.name for i in session.get_inputs()] == ["noise"]
    noise = _inputs(ddim(GRID), 3)["noise"]
    with torch.no_grad():
        expected = sample(denoiser, 80.0 * torch.tensor(noise[:, 0]), ddim(GRID)).numpy()
    assert np.abs(session.run(["sample"], {"noise": noise})[0] - expected).max() < 1e-4
    assert [i.name for i in _session(step(network), tmp_path).get_inputs()] == ["x", "scales"]
    with pytest.raises(ValueError, match="this plan is guided but nothing that its network takes means none"):
        unroll(network, PLANS["guided"], IMAGE)

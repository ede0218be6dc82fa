"""Graphs against torch: the same numbers, the promised number of network evaluations, one copy of the weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from fewstep.denoiser import Denoiser, unet
from fewstep.exporter.graph import Network, trace, unroll, with_weights
from fewstep.guidance import Guidance, guided
from fewstep.manifest import Condition, ImageSpec
from fewstep.plan import Plan, sample
from fewstep.schedule import karras, uniform
from fewstep.solvers import ddim, dpmpp_2m, few_step, heun

IMAGE, CLASSES = ImageSpec(channels=1, height=8, width=8), Condition(kind="labels", classes=3)
GRID = karras(4, 0.002, 80.0)
PLANS = {
    "ddim": ddim(GRID),
    "heun": heun(GRID),
    "dpmpp_2m": dpmpp_2m(GRID),
    "few_step": few_step(uniform(2, 2.5)),
    "guided": ddim(GRID, Guidance(2.0)),
    "interval": heun(GRID, Guidance(2.0, 0.1, 20.0)),
}


def _denoiser(seed: int, condition: Condition = CLASSES) -> Denoiser:
    torch.manual_seed(seed)
    return unet(IMAGE, condition, channels=(8,), layers=1, attention=True, patch=1, sigma_data=0.5).eval()


@pytest.fixture(scope="module")
def traces() -> dict[str, ir.Model]:
    return {precision: trace(_denoiser(0), IMAGE, CLASSES, precision) for precision in ("fp32", "fp16")}


@pytest.fixture(scope="module")
def networks(traces: dict[str, ir.Model]) -> dict[str, Network]:
    return {p: with_weights(t, _denoiser(1), IMAGE, CLASSES, p) for p, t in traces.items()}


def _save(network: Network, plan: Plan, directory: Path) -> Path:
    path = directory / "graph.onnx"
    ir.save(unroll(network, plan), path)
    return path


def _torch(plan: Plan, noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
    draws = [torch.tensor(noise[:, i]) for i in range(plan.draws)]
    denoise = guided(_denoiser(1), (torch.tensor(labels),), (torch.full((len(labels),), 3),))
    with torch.no_grad():
        return sample(denoise, float(plan.sigmas[0]) * draws[0], plan, draws[1:]).numpy()


def _inputs(plan: Plan, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    noise = rng.standard_normal((batch, plan.draws, *IMAGE.shape)).astype(np.float32)
    return {"noise": noise, "labels": rng.integers(0, 3, batch)}


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 3e-2)])
@pytest.mark.parametrize("name", PLANS)
def test_one_graph_gives_torchs_images_at_every_batch_size(
    name: str, precision: str, limit: float, networks: dict[str, Network], tmp_path: Path
) -> None:
    plan = PLANS[name]
    session = ort.InferenceSession(_save(networks[precision], plan, tmp_path), providers=["CPUExecutionProvider"])
    for batch in range(1, 9):
        feeds = _inputs(plan, batch)
        images, floats = session.run(["images", "sample"], feeds)
        assert np.abs(floats - _torch(plan, **feeds)).max() < limit
        expected = np.round(np.clip((floats + 1) * 127.5, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
        assert images.dtype == np.uint8
        assert np.abs(images.astype(int) - expected).max() <= 1  # a tie may round either way after the last bit
        assert (images == expected).mean() > 0.99


def test_a_batch_larger_than_traced_and_larger_than_torch_guards_works(networks: dict[str, Network], tmp_path: Path) -> None:
    plan = PLANS["few_step"]
    session = ort.InferenceSession(_save(networks["fp32"], plan, tmp_path), providers=["CPUExecutionProvider"])
    feeds = _inputs(plan, 100)
    assert np.abs(session.run(["sample"], feeds)[0] - _torch(plan, **feeds)).max() < 1e-4


def _evaluations(path: Path) -> int:
    """Copies of the network's first convolution."""
    nodes = onnx.load(path).graph.node
    return sum("net.conv_in.weight" in i for node in nodes if node.op_type == "Conv" for i in node.input)


@pytest.mark.parametrize("name", PLANS)
def test_the_graph_holds_exactly_the_evaluations_of_the_plan(name: str, networks: dict[str, Network], tmp_path: Path) -> None:
    plan = PLANS[name]
    inside = int((plan.weights != 1).sum())
    assert _evaluations(_save(networks["fp32"], plan, tmp_path)) == plan.rows + inside == plan.nfe


def test_an_interval_that_leaves_a_part_out_saves_evaluations() -> None:
    assert PLANS["interval"].rows < PLANS["interval"].nfe < 2 * PLANS["interval"].rows


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_are_stored_once_and_compute_in_the_asked_precision(
    precision: str, networks: dict[str, Network], tmp_path: Path
) -> None:
    sizes = {}
    for name in ("few_step", "heun"):
        model = onnx.load(_save(networks[precision], PLANS[name], tmp_path))
        onnx.checker.check_model(model, full_check=True)
        assert len({i.name for i in model.graph.initializer}) == len(model.graph.initializer)
        sizes[name] = sum(len(i.raw_data) for i in model.graph.initializer)
        types = Counter(i.data_type for i in model.graph.initializer if i.name.endswith("conv_in.weight"))
        assert types == {onnx.TensorProto.FLOAT if precision == "fp32" else onnx.TensorProto.FLOAT16: 1}
    assert sizes["heun"] < 1.05 * sizes["few_step"]


def test_zero_coefficients_write_no_nodes(networks: dict[str, Network], tmp_path: Path) -> None:
    """DDIM: per row, 1 product into the network, 2 for D = skip x + out F, 2 for x' = a x + b D."""
    count = {}
    for n in (2, 3):
        nodes = onnx.load(_save(networks["fp32"], ddim(karras(n, 0.002, 80.0)), tmp_path)).graph.node
        count[n] = Counter(node.op_type for node in nodes if "/" not in node.output[0])
    assert count[3]["Mul"] - count[2]["Mul"] == 5
    assert count[3]["Add"] - count[2]["Add"] == 2


def test_a_network_without_condition_needs_no_labels(tmp_path: Path) -> None:
    none = Condition(kind="none")
    denoiser = _denoiser(1, none)
    network = with_weights(trace(denoiser, IMAGE, none, "fp32"), denoiser, IMAGE, none, "fp32")
    session = ort.InferenceSession(_save(network, ddim(GRID), tmp_path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["noise"]
    noise = _inputs(ddim(GRID), 3)["noise"]
    with torch.no_grad():
        expected = sample(denoiser, 80.0 * torch.tensor(noise[:, 0]), ddim(GRID)).numpy()
    assert np.abs(session.run(["sample"], {"noise": noise})[0] - expected).max() < 1e-4

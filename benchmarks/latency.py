"""One plan, run in every way a user might: python benchmarks/latency.py demo/digits.bundle

Writes benchmarks/results/latency.json. All ways start from the same noise and must give the same images; how they take turns
says turns.py. `bare` is one call of the network's plain ONNX export, without sampler; over_bare is a way's latency over
evaluations x bare.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from turns import ROUNDS, Run, in_turns

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import Layout
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan, sample

if TYPE_CHECKING:
    from fewstep.models.denoiser import Denoiser

RESULT = Path(__file__).parent / "results" / "latency.json"
PLANS = ("sid1", "ddim10", "ddim10_w2_interval")
BATCHES = (1, 8)
WAYS = (
    "baked",
    "baked, loop",
    "Generator",
    "Generator, step graph",
    "eager torch",
    "torch.compile",
    "diffusers scheduler",
    "Python loop over ONNX",
    "bare",
)


def to_images(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return np.clip(np.round((array + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def in_torch(denoiser: Denoiser, plan: Plan, start: np.ndarray, labels: np.ndarray) -> Run:
    import torch

    draws = [torch.tensor(start[:, i]) for i in range(plan.draws)]
    condition, null = (torch.tensor(labels),), (torch.full((len(labels),), 10),)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return to_images(sample(guided(denoiser, condition, null), plan.begin(draws[0]), plan, draws[1:]))

    return run


def in_diffusers(denoiser: Denoiser, plan: Plan, start: np.ndarray, labels: np.ndarray) -> Run | None:
    """What a diffusers pipeline does: its EDM Euler scheduler around the network, batched guidance in every step."""
    import torch
    from diffusers import EDMEulerScheduler

    euler = np.allclose(plan.a[np.tril_indices(plan.rows, -1)], 0) and not plan.c.any()
    full = (plan.guidance == plan.guidance[0]).all()
    if not euler or not full or not np.allclose(plan.b[np.tril_indices(plan.rows, -1)], 0):
        return None
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    condition, null = torch.tensor(labels), torch.full((len(labels),), 10)
    scale = float(plan.guidance[0])

    def network(x: Any, t: Any, label: Any) -> Any:
        return denoiser.evaluate(x, 1000 * t.float(), label)  # the scheduler's t is ln(sigma) / 4

    def run() -> np.ndarray:
        with torch.inference_mode():
            scheduler.set_timesteps(plan.rows)
            scheduler.sigmas = torch.tensor(plan.sigmas, dtype=torch.float32)
            scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
            x = plan.begin(torch.tensor(start[:, 0]))
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t)
                if scale == 1:
                    out = network(scaled, t, condition)
                else:
                    both = network(torch.cat([scaled, scaled]), t, torch.cat([condition, null]))
                    given, none = both.chunk(2)
                    out = none + scale * (given - none)
                x = scheduler.step(out, t, x).prev_sample
            return to_images(x)

    return run


def write_plain(denoiser: Denoiser, path: Path) -> None:
    """One evaluation as torch.onnx.export writes it: what most people deploy."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.denoiser.evaluate(x, timestep, labels)

    example = (torch.zeros(2, 1, 28, 28), torch.tensor(1.0), torch.zeros(2, dtype=torch.int64))
    batch = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        Plain().eval(),
        example,
        path,
        dynamo=True,
        dynamic_shapes=({0: batch}, {}, {0: batch}),
        opset_version=20,
        verbose=False,
    )


def in_python(
    session: ort.InferenceSession, scales: Callable[[float], Any], plan: Plan, start: np.ndarray, labels: np.ndarray
) -> Run:
    names = [i.name for i in session.get_inputs()]

    def denoise(x: np.ndarray, sigma: float, label: np.ndarray) -> np.ndarray:
        s = scales(sigma)
        feeds = dict(zip(names, (np.float32(s.into) * x, np.array(s.timestep, np.float32), label), strict=True))
        return np.float32(s.skip) * x + np.float32(s.out) * session.run(None, feeds)[0]

    null = np.full_like(labels, 10)

    def run() -> np.ndarray:
        x = plan.begin(start[:, 0])
        draws = list(start[:, 1:].swapaxes(0, 1))
        return to_images(sample(guided(denoise, (labels,), (null,)), x, plan, draws))

    return run


def bare(session: ort.InferenceSession, x: np.ndarray, labels: np.ndarray) -> Run:
    values = (x, np.array(0.0, np.float32), labels)
    feeds = {given.name: value for given, value in zip(session.get_inputs(), values, strict=True)}
    return lambda: session.run(None, feeds)[0]


def build(way: str, root: Path, plain: Path, name: str, batch: int) -> Run | None:
    """One way to run a plan; None where diffusers has no scheduler for it."""
    bundle = Bundle.load(root)
    plan, network = bundle.plan(name), bundle.manifest.plans[name].denoiser
    seeds, labels = list(range(batch)), np.arange(batch) % 10
    start = noise(seeds, (plan.draws, 1, 28, 28))
    graphs = {"baked": f"{name}.fp32", "baked, loop": f"{name}.loop.fp32", "step graph": f"{network}.step.fp32"}
    if way in ("Generator", "Generator, step graph"):
        generator = Generator(bundle, graph=graphs["step graph" if "step" in way else "baked"], plan=name, backend="cpu")
        return lambda: generator(labels=labels, seeds=seeds)
    if way in graphs:
        session = ort.InferenceSession(
            bundle.file(bundle.manifest.graphs[graphs[way]].file), providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(["images"], {"noise": start, "labels": labels})[0]
    if way == "bare":
        return bare(ort.InferenceSession(plain, providers=["CPUExecutionProvider"]), start[:, 0], labels)
    if way == "Python loop over ONNX":
        session = ort.InferenceSession(plain, providers=["CPUExecutionProvider"])
        return in_python(session, bundle.manifest.denoisers[network].parametrisation.scales, plan, start, labels)
    import torch

    from fewstep.models.denoiser import load_network

    denoiser = load_network(bundle, network)
    if way == "diffusers scheduler":
        return in_diffusers(denoiser, plan, start, labels)
    if way == "torch.compile":
        denoiser.net = torch.compile(denoiser.net, dynamic=False)  # type: ignore[assignment]
    return in_torch(denoiser, plan, start, labels)


def same_images(made: dict[str, np.ndarray]) -> None:
    for way, images in made.items():
        difference = 0 if way == "bare" else np.abs(images.astype(int) - made["baked"].astype(int)).max()
        assert difference <= 1, f"{way} gives another image"


def main(source: Path) -> None:
    from fewstep.exporter.export import export_graphs
    from fewstep.models.denoiser import load_network
    from fewstep.system.machine import described

    result: dict[str, Any] = {"machine": described(), "rounds": ROUNDS, "plans": {}}
    with tempfile.TemporaryDirectory() as directory:
        bundle = Bundle.load(source)
        root = Path(directory, "digits.bundle")
        shutil.copytree(bundle.root, root)
        layouts: list[Layout] = ["unrolled", "loop", "step"]
        bundle = export_graphs(Bundle.load(root), PLANS, ["fp32"], layouts=layouts, report=print)
        for name in PLANS:
            plan, entry = bundle.plan(name), bundle.manifest.plans[name]
            plain = Path(directory, f"{name}.plain.onnx")
            write_plain(load_network(bundle, entry.denoiser), plain)
            for batch in BATCHES:
                result["plans"][f"{name}, batch {batch}"] = _one(bundle, name, plan, plain, batch)
                RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _one(bundle: Bundle, name: str, plan: Plan, plain: Path, batch: int) -> dict[str, Any]:
    measured = in_turns(build, {way: (way, bundle.root, plain, name, batch) for way in WAYS}, same_images)
    floor = plan.nfe * measured["bare"]["median_ms"]
    for way, row in measured.items():
        row["over_bare"] = row["median_ms"] / floor
        row["over_baked"] = row["median_ms"] / measured["baked"]["median_ms"]
        line = f"{row['median_ms']:8.2f} ms  {row['over_baked']:.2f} x baked  {row['over_bare']:.3f} x bare"
        print(f"{name:20} batch {batch}  {way:22} {line}", flush=True)
    graphs = {"baked": f"{name}.fp32", "baked, loop": f"{name}.loop.fp32"}
    nodes = {way: len(_nodes(bundle.file(bundle.manifest.graphs[graph].file))) for way, graph in graphs.items()}
    nodes["evaluations x bare"] = plan.nfe * len(_nodes(plain))
    batched_guidance = bundle.manifest.graphs[f"{name}.fp32"].batched_guidance
    return {"evaluations": plan.nfe, "batched_guidance": batched_guidance, "nodes": nodes, "ways": measured}


def _nodes(path: Path) -> list[str]:
    return [str(node.name) for node in ir.load(path).graph.all_nodes()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

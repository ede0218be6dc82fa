"""From a bundle's plans to graphs in the bundle, each with reference outputs that prove it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fewstep.bundle import Bundle
from fewstep.denoiser import Denoiser, load_network
from fewstep.exporter.graph import OPSET, trace, unroll, with_weights
from fewstep.guidance import guided
from fewstep.manifest import GraphEntry, Precision
from fewstep.plan import Plan, trajectory
from fewstep.progress import Track, silent

__all__ = ["GOLDEN", "LIMITS", "export_graphs", "reference"]

GOLDEN = "golden.npz"
LIMITS: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 3e-2,
    "bf16": 0.2,
    "int8": 0.5,
    "int8-fp16": 0.5,
    "fp8": 0.5,
}  # largest |sample - torch fp32|, images in [-1, 1]
GOLDEN_BATCH = 4


def export_graphs(bundle: Bundle, plans: Sequence[str], precisions: Sequence[Precision], *, track: Track = silent) -> Bundle:
    """Write a graph for each plan and precision, and golden.npz with torch's result for each plan.

    Raises ValueError for a plan the bundle does not have.
    """
    entries = {name: bundle.pick("plan", name, bundle.manifest.plans) for name in plans}
    networks = {entry.network: load_network(bundle, entry.network) for entry in entries.values()}
    golden = dict(np.load(bundle.file(GOLDEN))) if GOLDEN in bundle.manifest.files else {}
    work = [(network, precision) for network in networks for precision in precisions]
    traces: dict[tuple[str, Precision], ir.Model] = {}
    image, condition = bundle.manifest.image, bundle.manifest.condition
    with bundle.edit() as draft:
        for i in track(range(len(work)), "export graphs"):
            network, precision = work[i]
            denoiser = networks[network]
            key = (denoiser.architecture, precision)
            if key not in traces:
                traces[key] = trace(denoiser, image, condition, precision)
            evaluated = with_weights(traces[key], denoiser, image, condition, precision)
            for name in (n for n, entry in entries.items() if entry.network == network):
                graph = GraphEntry(
                    file=f"graphs/{name}.{precision}.onnx",
                    network=network,
                    plan=name,
                    precision=precision,
                    layout="unrolled",
                    opset=OPSET,
                    limit=LIMITS[precision],
                )
                ir.save(unroll(evaluated, bundle.plan(name)), draft.new(graph.file))
                draft.manifest.graphs[f"{name}.{precision}"] = graph
        for name, entry in entries.items():
            golden |= {f"{name}/{k}": v for k, v in reference(bundle, networks[entry.network], bundle.plan(name)).items()}
        np.savez_compressed(draft.new(GOLDEN), allow_pickle=False, **golden)
    return Bundle.load(bundle.root)


def reference(bundle: Bundle, denoiser: Denoiser, plan: Plan, *, batch: int = GOLDEN_BATCH) -> dict[str, np.ndarray]:
    """A plan's inputs and torch's fp32 result: noise (B, draws, C, H, W), labels (B,), states (rows, B, C, H, W)."""
    image, condition = bundle.manifest.image, bundle.manifest.condition
    noise = torch.randn(batch, plan.draws, *image.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch) % condition.classes if condition.kind == "labels" else None
    null = None if labels is None else torch.full_like(labels, condition.classes)
    with torch.no_grad():
        x = float(plan.sigmas[0]) * noise[:, 0]
        steps = trajectory(guided(denoiser, labels, null), x, plan, list(noise[:, 1:].unbind(1)))
        states: list[Tensor] = [step.x for step in steps]
    inputs = {"noise": noise.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    return inputs | {"states": torch.stack(states).numpy()}

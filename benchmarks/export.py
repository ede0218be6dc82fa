"""Sizes, times and memory of exports and engine builds: python benchmarks/export.py demo/digits.bundle

Writes benchmarks/results/export.json: the digits teacher at 1, 4 and 10 steps in every layout, and a network of more than 2 GB
of random weights, exported in a process of its own whose peak memory is compared with the weights.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import Layout, PlanEntry
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.backends.sessions import open_session
from fewstep.exporter.engine.build import build_engines
from fewstep.exporter.engine.cases import EngineSettings
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.denoiser import save_network, unet
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim
from fewstep.system.machine import described

RESULT = Path(__file__).parent / "results" / "export.json"
STEPS, LAYOUTS = (1, 4, 10), ("unrolled", "loop", "step")


def digits(source: Path, root: Path) -> dict[str, Any]:
    shutil.copytree(source, root)
    rows: dict[str, Any] = {}
    for steps in STEPS:
        with Bundle.load(root).edit() as draft:
            plan = ddim(karras(steps, 0.002, 80.0))
            draft.manifest.plans[f"n{steps}"] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM")
        for layout in LAYOUTS:
            if layout == "step" and steps > 1:
                continue  # the same graph for any plan
            rows[f"{steps} steps, {layout}"] = one(root, f"n{steps}", layout)  # type: ignore[arg-type]
            print(steps, layout, rows[f"{steps} steps, {layout}"], flush=True)
    return rows


def one(root: Path, plan: str, layout: Layout) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for precision in ("fp32", "fp16"):
        begin = time.perf_counter()
        bundle = export_graphs(Bundle.load(root), [plan], [precision], layouts=[layout])
        seconds = time.perf_counter() - begin
        name = "teacher.step" if layout == "step" else plan if layout == "unrolled" else f"{plan}.loop"
        graph = bundle.manifest.graphs[f"{name}.{precision}"]
        path = bundle.file(graph.file)
        begin = time.perf_counter()
        open_session(path, graph.file)
        row[precision] = {
            "export_seconds": seconds,
            "bytes": sum(bundle.manifest.files[p].bytes for p in graph.paths),
            "nodes": sum(1 for _ in ir.load(path).graph.all_nodes()),
            "load_seconds": time.perf_counter() - begin,
        }
    built = build_engines(bundle, [f"{name}.fp16"], settings=EngineSettings(targets=("89",), batch=(8,)))
    entry = Bundle.load(root).manifest.engines[built[0].name]
    files = Bundle.load(root).manifest.files
    row["engine fp16 SM89"] = {"build_seconds": entry.seconds, "bytes": files[entry.file].bytes, "layers": entry.layers}
    return row


def make_large(root: Path) -> None:
    torch.manual_seed(0)
    signature = Signature(inputs=(LabelInput(classes=10),), output=ImageOutput(channels=3, height=32, width=32))
    state = signature.output.state
    denoiser = unet(state, signature.inputs, channels=(448, 896, 1344), layers=3, attention=True, patch=1)
    with Draft.create(root, signature) as draft:
        save_network(draft, "teacher", denoiser)
        plan = ddim(karras(4, 0.002, 80.0))
        draft.manifest.plans["n4"] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM")


def export_large(root: Path, precision: str, layout: str) -> None:
    """In a process of its own: prints what it took."""
    begin = time.perf_counter()
    bundle = export_graphs(Bundle.load(root), ["n4"], [precision], layouts=[layout])  # type: ignore[arg-type, list-item]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (graph,) = (g for g in bundle.manifest.graphs.values() if (g.precision, g.layout) == (precision, layout))
    sizes = {Path(p).name: bundle.manifest.files[p].bytes for p in graph.paths}
    print(json.dumps({"seconds": time.perf_counter() - begin, "peak_bytes": peak, "files": sizes}))


def large(root: Path) -> dict[str, Any]:
    subprocess.run([sys.executable, __file__, "make", str(root)], check=True)
    files = Bundle.load(root).manifest.files
    weights = sum(f.bytes for name, f in files.items() if name.endswith(".safetensors"))
    command = "import resource, fewstep.exporter.export; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    imports = int(subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout) * 1024
    graphs: dict[str, Any] = {}
    for precision, layout in (("fp32", "loop"), ("fp32", "unrolled"), ("fp16", "loop"), ("fp16", "step")):
        done = subprocess.run(
            [sys.executable, __file__, "large", str(root), precision, layout], check=True, capture_output=True, text=True
        )
        graphs[f"{layout}, {precision}"] = row = json.loads(done.stdout.splitlines()[-1])
        print(layout, precision, row, flush=True)
    parity = {r.graph: {"max_error": r.max_error, "ok": r.ok} for r in check_graphs(Bundle.load(root))}
    print(parity)
    return {"weights_bytes": weights, "peak_bytes_of_imports": imports, "graphs": graphs, "parity": parity}


def main(source: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        result: dict[str, Any] = {"machine": described(), "digits teacher": digits(source, Path(directory, "digits.bundle"))}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        result["large"] = large(Path(directory, "large.bundle"))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make_large(Path(sys.argv[2]))
    elif sys.argv[1] == "large":
        export_large(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main(Path(sys.argv[1]))

"""Errors, latencies and sizes of the edge targets: python benchmarks/edge.py

Writes benchmarks/results/edge.json. Every target makes the same 100 images; errors are against the bundle's ONNX graph in
ONNX Runtime, latencies are medians of interleaved runs at batch 1 on one thread, which is what a browser page has. Needs
OpenVINO and, for the browser, Chromium and FEWSTEP_ORT_WEB (docs/edge.md).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino

from fewstep.artifact.bundle import Bundle
from fewstep.exporter.edge.package import TARGETS, package
from fewstep.runtime.noise import noise
from fewstep.system.machine import described

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "edge.json"
PLANS = ("sid1", "sid2")
IMAGES, RUNS = 100, 60

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], tuple[np.ndarray, np.ndarray]]


def onnx_runtime(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: tuple(session.run(["images", "sample"], feeds))


def open_vino(path: Path, settings: dict[str, Any]) -> Run:
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1} | settings)

    def run(feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
        outputs = compiled(feeds)
        return outputs["images"], outputs["sample"]

    return run


def on_this_cpu(bundle: Bundle, plan: str, out: Path) -> dict[str, Any]:
    name = f"{plan}.fp32"
    runs = {
        "onnx": onnx_runtime(bundle.file(bundle.manifest.graphs[name].file)),
        "ort": onnx_runtime(out / "ort" / f"{name}.ort"),
        "openvino f32": open_vino(out / "openvino" / f"{name}.xml", {"INFERENCE_PRECISION_HINT": "f32"}),
        "openvino default": open_vino(out / "openvino" / f"{name}.xml", {}),
    }
    feeds = {"noise": noise(range(IMAGES), (bundle.plan(plan).draws, 1, 28, 28)), "labels": np.arange(IMAGES) % 10}
    one = {key: value[:1] for key, value in feeds.items()}
    latencies: dict[str, list[float]] = {target: [] for target in runs}
    for _ in range(RUNS):
        for target, run in runs.items():
            start = time.perf_counter()
            run(one)
            latencies[target].append((time.perf_counter() - start) * 1e3)
    images, sample = runs["onnx"](feeds)
    result = {}
    for target, run in runs.items():
        other = run(feeds)
        result[target] = difference(other[0], images) | {
            "max_error": float(np.abs(other[1] - sample).max()),
            "latency_ms": median(latencies[target]),
        }
    return result


def difference(images: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    levels = np.abs(images.astype(int) - expected.astype(int))
    return {"max_levels": int(levels.max()), "pixels_that_differ": float((levels != 0).mean())}


def in_the_browser(bundle: Bundle, site: Path) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import browser, served

    status = "document.querySelector('#status').textContent"
    pixels = """[...document.querySelectorAll('canvas')].map((canvas) =>
      [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0))"""
    result = {}
    with served(site) as url, browser() as page:
        for plan in PLANS:
            page.open(f"{url}?graph={plan}.fp32&samples={IMAGES}&seed=0&labels=each")
            page.wait(f"{status}.includes('in all')")
            run = onnx_runtime(bundle.file(f"graphs/{plan}.fp32.onnx"))
            shape = (bundle.plan(plan).draws, 1, 28, 28)
            images, _ = run({"noise": noise(range(IMAGES), shape), "labels": np.arange(IMAGES) % 10})
            shown = np.array(page.run(pixels)).reshape(images.shape)
            latency = float(page.run(status).split(", ")[1].split(" ")[0])
            result[plan] = difference(shown, images) | {"latency_ms": latency, "threads": 1}
    return result


def main() -> None:
    bundle = Bundle.load(ROOT / "examples" / "digits.bundle")
    beside = Path(os.environ["FEWSTEP_ORT_WEB"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "package"
        report = package(bundle, out, TARGETS, plans=PLANS, ort_web_package=beside)
        result = {
            "machine": described() | {"openvino": openvino.__version__},
            "cpu": {plan: on_this_cpu(bundle, plan, out) for plan in PLANS},
            "browser": in_the_browser(bundle, out / "web"),
            "sizes": report.dump(),
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps({key: result[key] for key in ("cpu", "browser")}, indent=1))


if __name__ == "__main__":
    main()

"""int8 on x86 with and without VNNI, three ways: python benchmarks/int8.py

Writes benchmarks/results/int8.json: PSNR against fp32 and milliseconds of the shipped one-step generator with weights of 8
bits, of 8 bits with ONNX Runtime's option against saturation (session.x64quantprecision), and of 7 bits, on this processor and
on imitations of others (without_vnni.c; needs a C compiler). One thread; the excluded layers are those that each way needs. And
the PSNR in OpenVINO, which reads the same graphs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULT, BUNDLE = HERE / "results" / "int8.json", HERE.parent / "examples" / "digits.bundle"
PLAN, IMAGES, BATCHES, ROUNDS, BURST = "sid1", 256, (1, 8), 40, 5
PROCESSORS = {"this one": None, "AVX-512 without VNNI": "vnni", "AVX2": "avx512"}
WAYS = {
    "fp32": ("fp32", {}),
    "8 bits": ("8", {}),
    "8 bits, with the option": ("8", {"session.x64quantprecision": "1"}),
    "7 bits": ("7", {}),
}


def export(bits: int, root: Path) -> None:
    """The plan in int8 with weights of so many bits."""
    from fewstep.artifact.bundle import Bundle
    from fewstep.artifact.ranges import LARGEST_WEIGHT
    from fewstep.calibration.ranges import calibrate_ranges
    from fewstep.exporter.export import export_graphs

    LARGEST_WEIGHT["int8"] = {8: 127.0, 7: 64.0}[bits]
    export_graphs(calibrate_ranges(Bundle.load(root), PLAN, ["int8"]), [PLAN], ["int8"])


def measure(folder: Path) -> dict[str, Any]:
    """All ways in this process, on one thread, in turns."""
    import onnxruntime as ort
    import openvino

    sessions = {}
    for way, (graph, entries) in WAYS.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        sessions[way] = ort.InferenceSession(folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).standard_normal((IMAGES, 1, 1, 28, 28), np.float32)
    labels = np.arange(IMAGES) % 10
    made = {way: session.run(["sample"], {"noise": noise, "labels": labels})[0] for way, session in sessions.items()}
    rows: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for way, (graph, entries) in WAYS.items():
        if way != "fp32":
            rows[way]["psnr_db"] = psnr_db(made[way], made["fp32"])
        if way != "fp32" and not entries:
            settings = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(folder / f"{graph}.onnx", "CPU", settings)
            rows[way]["openvino_psnr_db"] = psnr_db(compiled({"noise": noise, "labels": labels})["sample"], made["fp32"])
    for batch in BATCHES:
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, session in sessions.items():
                for k in range(BURST + 1):
                    begin = time.perf_counter()
                    session.run(["images"], {"noise": noise[:batch], "labels": labels[:batch]})
                    times[way] += [(time.perf_counter() - begin) * 1e3] if k else []
        for way in WAYS:
            rows[way][f"batch {batch}"] = {"median_ms": median(times[way]), "least_ms": min(times[way])}
    return rows


def psnr_db(made: np.ndarray, exact: np.ndarray) -> float:
    return 10 * log10(4 / np.square(made.astype(np.float64) - exact).mean())


def main() -> None:
    from fewstep.artifact.bundle import Bundle
    from fewstep.system.machine import described

    result: dict[str, Any] = {"machine": described(), "images": IMAGES, "excluded": {}, "processors": {}}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", HERE / "without_vnni.c", "-o", folder / "hide.so"], check=True)
        for bits in (8, 7):
            root = folder / "digits.bundle"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(BUNDLE, root)
            export(bits, root)
            bundle = Bundle.load(root)
            for name in ("fp32", "int8"):
                target = folder / (f"{bits}.onnx" if name == "int8" else "fp32.onnx")
                shutil.copyfile(bundle.file(f"graphs/{PLAN}.{name}.onnx"), target)
            result["excluded"][str(bits)] = bundle.manifest.graphs[f"{PLAN}.int8"].excluded
        for title, hide in PROCESSORS.items():
            other = {"LD_PRELOAD": str(folder / "hide.so"), "HIDE": hide} if hide else {}
            command = [sys.executable, __file__, str(folder)]
            done = subprocess.run(command, env=os.environ | other, check=True, capture_output=True, text=True)
            result["processors"][title] = rows = json.loads(done.stdout)
            for way, row in rows.items():
                times = "  ".join(f"{row[f'batch {b}']['median_ms']:6.2f}" for b in BATCHES)
                print(f"{title:22} {way:24} {row.get('psnr_db', 0):6.2f} dB  {times} ms")
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()

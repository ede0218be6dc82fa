"""Where the time of fp32 and int8 goes, operator by operator: python benchmarks/operators.py

Writes benchmarks/results/operators.json from ONNX Runtime's own profile of the shipped one-step generator.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fewstep.artifact.bundle import Bundle
from fewstep.runtime.noise import noise
from fewstep.system.machine import described

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "operators.json"
RUNS = 100


def profile(path: Path, batch: int) -> dict[str, float]:
    """Milliseconds of a run by kind of operator, the longest first."""
    with tempfile.TemporaryDirectory() as directory:
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(directory, "profile"))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {"noise": noise(range(batch), (1, 1, 28, 28)), "labels": np.arange(batch) % 10}
        for _ in range(RUNS):
            session.run(["images"], feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {kind: micros / RUNS / 1e3 for kind, micros in spent.most_common()}


def main() -> None:
    bundle = Bundle.load(ROOT / "examples" / "digits.bundle")
    result: dict[str, Any] = {"machine": described(), "runs": RUNS}
    for precision in ("fp32", "int8"):
        for batch in (1, 8):
            graph = bundle.file(bundle.manifest.graphs[f"sid1.{precision}"].file)
            result[f"sid1.{precision}, batch {batch}"] = profile(graph, batch)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

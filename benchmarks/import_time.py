"""What importing fewstep.runtime adds to importing ONNX Runtime: python benchmarks/import_time.py

Writes benchmarks/results/import_time.json: medians over interleaved fresh processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median, stdev

from fewstep.system.machine import described

RUNS = 11
RESULT = Path(__file__).parent / "results" / "import_time.json"
CODE = "import time, onnxruntime; start = time.perf_counter(); import fewstep.runtime; print(time.perf_counter() - start)"
BARE = "import time; start = time.perf_counter(); import onnxruntime; print(time.perf_counter() - start)"


def main() -> None:
    seconds: dict[str, list[float]] = {"fewstep.runtime_after_onnxruntime": [], "onnxruntime": []}
    for _ in range(RUNS):
        for name, code in zip(seconds, (CODE, BARE), strict=True):
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            seconds[name].append(float(done.stdout))
    result = {name: {"median_s": median(values), "std_s": stdev(values), "runs": RUNS} for name, values in seconds.items()}
    RESULT.write_text(json.dumps({"machine": described(), **result}, indent=1) + "\n", "utf-8")
    print(result)


if __name__ == "__main__":
    main()

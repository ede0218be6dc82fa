"""bf16 and fp32 on one processor that is told to be others: python benchmarks/mixed_precision.py

Times, in one thread and by the time that it is given, forward and backward of the block that fewstep chooses by, and of the
network of digits with 32 images. Writes benchmarks/results/mixed_precision.json: medians over fresh processes, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from fewstep.system.machine import described

RESULT = Path(__file__).parent / "results" / "mixed_precision.json"
ROUNDS = 3
KINDS = {
    "this processor": {},
    "AVX-512 with bf16, no AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX-512 with VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def worker() -> dict[str, Any]:
    import torch

    from fewstep.artifact.signature import ImageOutput, LabelInput
    from fewstep.models.denoiser import unet
    from fewstep.models.mixed_precision import autocast, times_fp32

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    state, inputs = ImageOutput(channels=1, height=28, width=28).state, (LabelInput(classes=10),)
    net = unet(state, inputs, channels=(32, 64), layers=1, attention=False, patch=2)
    given = torch.zeros(32, 1, 28, 28), torch.ones(32), torch.zeros(32, dtype=torch.int64)

    def update(precision: str) -> float:
        times = []
        for _ in range(6):
            begin = time.thread_time()
            with autocast(precision, cpu):
                made = net(*given)
            made.float().square().mean().backward()
            times.append(time.thread_time() - begin)
        return min(times)

    return {
        "says_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "block": times_fp32("bf16", "cpu"),
        "network": update("bf16") / update("no"),
        "fp32_ms": update("no") * 1e3,
    }


def measured(kind: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "worker"]
    done = subprocess.run(command, check=True, env=os.environ | kind, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    for _ in range(ROUNDS):
        for name, kind in KINDS.items():
            found[name].append(measured(kind))
            print(name, found[name][-1], flush=True)
    rows = {
        name: {"says_bf16": runs[0]["says_bf16"]}
        | {key: median(run[key] for run in runs) for key in ("block", "network", "fp32_ms")}
        | {"block_range": [min(run["block"] for run in runs), max(run["block"] for run in runs)]}
        for name, runs in found.items()
    }
    RESULT.write_text(json.dumps({"machine": described(), "rounds": ROUNDS, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        print(json.dumps(worker()))
    else:
        main()

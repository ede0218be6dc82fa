"""The machine that figures are of: GPU, driver, versions, and which of CUDA's libraries ONNX Runtime has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from fewstep.system.machine import described
from gpu.job import Work

__all__ = ["facts"]

LIBRARIES = ("libcudart", "libcublas.", "libcudnn.", "libcurand")


def facts(work: Work) -> None:
    """The task: facts of this machine."""
    import onnxruntime as ort
    import torch

    from fewstep.backends.cuda_libraries import load_cuda_libraries
    from fewstep.backends.sessions import CUDA

    load_cuda_libraries()
    device = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    work.note(
        machine=described()
        | {
            "gpu_memory_bytes": device.total_memory if device else None,
            "multiprocessors": device.multi_processor_count if device else None,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device else None,
            "onnxruntime": ort.__version__,
            "providers": ort.get_available_providers(),
            "libraries": loaded(),
        }
    )
    if CUDA not in ort.get_available_providers():
        raise ValueError(
            f"ONNX Runtime {ort.__version__} in {Path(ort.__file__).parent} has no {CUDA}; install "
            "onnxruntime-gpu with benchmarks/gpu/pack.sh"
        )


def driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def loaded() -> dict[str, Any]:
    """Where CUDA's libraries in this process were loaded from."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text("utf-8").splitlines() if maps.exists() else []
    paths = sorted({line.split()[-1] for line in lines if ".so" in line})
    return {Path(path).name: path for path in paths if Path(path).name.startswith(LIBRARIES)}

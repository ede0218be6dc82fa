"""The machine at hand: its GPU, asked through the CUDA driver without any package, and its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fewstep.system.cores import usable_cores

__all__ = ["Machine", "described", "processor", "this_machine"]

_PACKAGES = ("fewstep", "torch", "diffusers", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy")

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


@dataclass(frozen=True)
class Machine:
    """What engine builds depend on.

    Args:
        sm: architecture of the first GPU, such as "89"; None without one.
        gpu: its name.
        memory_bytes: of the machine, not of the GPU; 0 where it is not known.
    """

    sm: str | None = None
    gpu: str | None = None
    memory_bytes: int = 0


def this_machine() -> Machine:
    """The machine this runs on; sm and gpu are None without an NVIDIA driver or GPU."""
    sm, gpu = _first_gpu()
    return Machine(sm, gpu, _memory_bytes())


def described() -> dict[str, Any]:
    """What figures are measured on: date, processor, GPU, versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": usable_cores(),
        "gpu": this_machine().gpu,
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def processor() -> str:
    """What the processor is called."""
    return next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text("utf-8").splitlines() if path.exists() else []


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):  # Windows
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _first_gpu() -> tuple[str | None, str | None]:
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None, None
    device, major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None, None
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None, None
    cuda.cuDeviceGetName(name, len(name), device)
    return f"{major.value}{minor.value}", name.value.decode(errors="replace")

"""The machine at hand: its GPU, asked through the CUDA driver without any package, and its memory."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

__all__ = ["Machine", "this_machine"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


@dataclass(frozen=True)
class Machine:
    """What engine builds depend on: the first GPU's architecture (SM) such as "89" and its name, and the memory."""

    sm: str | None = None
    gpu: str | None = None
    memory_bytes: int = 0


def this_machine() -> Machine:
    """The machine this runs on; sm and gpu are None without an NVIDIA driver or GPU."""
    sm, gpu = _first_gpu()
    return Machine(sm, gpu, _memory_bytes())


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

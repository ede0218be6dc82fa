"""Where ONNX Runtime finds CUDA's and cuDNN's libraries: in NVIDIA's packages, which torch brings. Needs onnxruntime.

By itself it finds what LD_LIBRARY_PATH names, or what another package, torch most often, has loaded before. `preload_dlls`
loads NVIDIA's packages by their files, but looks for them beside ONNX Runtime alone; an environment may have them in another
folder of Python's path, as one that is laid over torch's own has.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from functools import cache
from pathlib import Path

import onnxruntime as ort

__all__ = ["CUDNN", "folders", "load_cuda_libraries", "why_not"]

CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"  # loaded at the first convolution and not before


@cache
def load_cuda_libraries() -> None:
    """Load what there is of them into this process, before a provider looks for them. What is missing is no error here."""
    with contextlib.redirect_stdout(io.StringIO()):  # preload_dlls prints what each folder lacks
        for folder in folders():
            ort.preload_dlls(directory=str(folder))
        ort.preload_dlls()


def folders() -> list[Path]:
    """Folders with libraries of NVIDIA's packages on Python's path: CUDA 13 has one, CUDA 12 one for each library."""
    found = [folder for entry in sys.path for folder in sorted(Path(entry or ".").glob("nvidia/*/lib")) if folder.is_dir()]
    return [folder.resolve() for folder in found]


def why_not(library: str) -> str:
    """Why a library does not load, in the loader's words, or "" where it does."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        reason = str(error).removeprefix(f"{library}: ")
        return "" if "undefined symbol" in reason else reason  # ONNX Runtime itself brings what is undefined
    return ""

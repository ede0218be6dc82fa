"""Named arrays in files: .npz of numpy, .safetensors. Read without pickle; whole, into memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.system.extras import install

__all__ = ["SUFFIXES", "read_arrays"]

SUFFIXES = (".npz", ".safetensors")


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name. Raises FileNotFoundError, or ValueError for one that is not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a file with named arrays, {' or '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name} is no file of named arrays; give one that ends in {' or '.join(SUFFIXES)}")
    try:
        return _npz(path) if path.suffix == ".npz" else _safetensors(path)
    except ImportError:
        raise ValueError(f"{path.name} needs safetensors to be read; {install('train')}, or save its arrays as .npz") from None
    except Exception as error:  # of whatever kind numpy and safetensors raise for bytes they do not expect
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not readable ({reason}); save its arrays again, as numbers of 16 to 64 bits") from None


def _npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive")
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load_file

    found: dict[str, npt.NDArray[Any]] = load_file(path)
    return found

"""Results that took long, kept between runs: one JSON file for each set of settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors.torch import save
from torch import Tensor

from fewstep import __version__
from fewstep.system.caches import default_folder
from fewstep.system.places import check_folder

__all__ = ["Cache", "arrays_digest", "default_folder", "tensors_digest"]


def arrays_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """One hash for arrays by name."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return hashlib.sha256(safetensors.numpy.save(ordered)).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """One hash for tensors by name."""
    return hashlib.sha256(save({name: tensors[name].contiguous() for name in sorted(tensors)})).hexdigest()


class Cache:
    """What this version of fewstep found for some settings, in a file named by their hash. They stand in it, to be read."""

    def __init__(self, folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps({"fewstep": __version__, **settings}, sort_keys=True))
        key = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        check_folder(folder)
        self.path = folder / f"{kind}-{key}.json"

    def read(self) -> Any:
        """What was written last; None where there is nothing, or nothing readable."""
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return found["value"] if found["settings"] == self.settings else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, value: Any) -> None:
        """Replace it, beside first and then renamed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"settings": self.settings, "value": value}, indent=1), "utf-8")
        os.replace(beside, self.path)

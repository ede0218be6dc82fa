"""Writing safetensors files so that a full disk is an OSError, as it is for every other file. Needs torch and safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fewstep.system.places import writing

__all__ = ["os_errors", "save_tensors"]


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn a SafetensorError that stems from the operating system into the OSError it hides."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all: what was there before is replaced, or left.

    Args:
        path: of the file.
        tensors: by name, on any device.
        metadata: words for the file's header.

    Raises:
        OSError: where it cannot be written.
        ValueError: where no file may be, as `writing` says.
    """
    with writing(path) as beside, os_errors():
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, beside, dict(metadata or {}))

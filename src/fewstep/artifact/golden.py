"""golden.npz: for every exported plan, some inputs and what torch makes of them, as arrays called PLAN/NAME.

noise (B, draws, C, H, W), the condition by name, states (rows, B, C, H, W) and sample (B, C, H, W), the image before rounding.
An archive may unpack to more than any memory: what is read is what the manifest calls for, and no more.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewstep.artifact.manifest import Manifest

__all__ = ["GOLDEN", "Arrays", "read_golden", "write_golden"]

GOLDEN = "golden.npz"
MAX_BATCH = 64  # images of a plan that are read; the exporter writes 4 at most
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_golden(path: Path, manifest: Manifest, plans: Iterable[str] = ()) -> dict[str, Arrays]:
    """The references of some of the manifest's plans, all unless named, by plan; those that are not there are left out.

    Args:
        path: of golden.npz.
        manifest: that says the shape and type of each array.
        plans: by name.

    Returns:
        Arrays by name, by plan.

    Raises:
        ValueError: for an array that is not what the manifest calls for; numpy and zipfile raise more for a file that cannot be
            read.
    """
    with zipfile.ZipFile(path) as archive:
        there = [plan for plan in sorted(plans or manifest.plans) if f"{plan}/sample.npy" in archive.NameToInfo]
        return {plan: _read_plan(archive, plan, manifest) for plan in there}


def write_golden(path: Path, references: Mapping[str, Arrays]) -> None:
    """Write references by plan.

    Args:
        path: of golden.npz.
        references: arrays by name, by plan; see the top of this module for their shapes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # numpy 2.0's savez cannot be told to pickle nothing
        for plan, found in references.items():
            for name, array in found.items():
                with archive.open(f"{plan}/{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _read_plan(archive: zipfile.ZipFile, plan: str, manifest: Manifest) -> Arrays:
    batch = _header(archive, f"{plan}/noise")[0][0]
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"{plan}/noise has {batch} images, up to {MAX_BATCH} are read")
    return {
        name: _read(archive, f"{plan}/{name}", shape, dtype) for name, (shape, dtype) in _wanted(plan, manifest, batch).items()
    }


def _wanted(plan: str, manifest: Manifest, batch: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array of a plan."""
    table, state = manifest.plans[plan].plan(), manifest.state.shape
    wanted = {
        "noise": ((batch, table.draws, *state), "float32"),
        "states": ((table.rows, batch, *state), "float32"),
        "sample": ((batch, *manifest.output.shape), "float32"),
    }
    inputs = {spec.name: ((batch, *spec.shape), spec.dtype) for spec in manifest.signature.tensors(guided=table.guided)}
    return wanted | inputs


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    found = _header(archive, name)
    if found != (shape, np.dtype(dtype)):
        raise ValueError(f"{name} is {found[1]} {list(found[0])}, the manifest calls for {dtype} {list(shape)}")
    with archive.open(f"{name}.npy") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that an array says it has, read without the array."""
    with archive.open(f"{name}.npy") as file:
        return _parsed(file)


def _parsed(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"an array of version {version}, which numpy writes for none of these")
    shape, _, dtype = HEADERS[version](file)
    return tuple(shape), np.dtype(dtype)

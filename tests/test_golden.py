"""golden.npz is read as far as the manifest calls for it, however much it would unpack to."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.golden import GOLDEN, write_golden

GIB = 1 << 30


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def signed(bundle: Bundle, change: Callable[[zipfile.ZipFile], None], left_out: str) -> Bundle:
    """The bundle with its references but one, and what `change` adds; hashed as it should be."""
    with zipfile.ZipFile(bundle.file(GOLDEN)) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name != left_out}
    with bundle.edit() as draft, zipfile.ZipFile(draft.new(GOLDEN), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as changed:
        for name, content in kept.items():
            changed.writestr(name, content)
        change(changed)
    return Bundle.load(bundle.root)


def zeros(archive: zipfile.ZipFile, name: str, head: bytes, gib: int) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        file.write(head)
        for _ in range(gib * 64):
            file.write(bytes(GIB >> 6))


BOMBS: dict[str, tuple[str, Callable[[zipfile.ZipFile], None], str]] = {
    "an array that is large": (
        "sid1/noise.npy",
        lambda archive: zeros(archive, "sid1/noise.npy", header((4, GIB // 16)), 1),
        r"sid1/noise is float32 \[4, 67108864\], the manifest calls for float32 \[4, 1, 1, 28, 28\]",
    ),
    "an array that says it is large": (
        "sid1/noise.npy",
        lambda archive: archive.writestr("sid1/noise.npy", header((1 << 40, 1, 1, 28, 28))),
        "sid1/noise has 1099511627776 images, up to 64 are read",
    ),
    "numbers that take more": (
        "sid1/sample.npy",
        lambda archive: archive.writestr("sid1/sample.npy", header((4, 1, 28, 28), "<f8") + bytes(8 * 4 * 784)),
        "sid1/sample is float64",
    ),
    "objects": (
        "sid1/sample.npy",
        lambda archive: archive.writestr("sid1/sample.npy", header((4, 1, 28, 28), "|O") + b"cos\nsystem\n"),
        "sid1/sample is object",
    ),
    "a header behind which nothing is": (
        "sid1/sample.npy",
        lambda archive: archive.writestr("sid1/sample.npy", header((4, 1, 28, 28))),
        "golden.npz cannot be read",
    ),
    "nothing": ("sid1/noise.npy", lambda _: None, "golden.npz cannot be read"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_archive_is_not_unpacked_beyond_what_the_manifest_calls_for(name: str, digits: Bundle) -> None:
    left_out, change, message = BOMBS[name]
    bundle = signed(digits, change, left_out)
    assert bundle.manifest.files[GOLDEN].bytes < 4 << 20
    begin, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        bundle.references()
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB
    assert "golden.npz cannot be read" in refused("check", bundle.root)


def test_what_the_manifest_does_not_know_is_not_read(digits: Bundle) -> None:
    bundle = signed(digits, lambda archive: zeros(archive, "strange/sample.npy", header((GIB // 4,)), 1), "nothing")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert set(bundle.references()) == {"sid1", "sid2"}
    with bundle.edit() as draft:  # nor is it copied, when a change leaves references out
        draft.manifest.plans["sid2"].sigmas[0] *= 1.01
    assert set(Bundle.load(bundle.root).references()) == {"sid1"}
    with zipfile.ZipFile(bundle.root / GOLDEN) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"sid1"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10


def test_references_that_cannot_be_read_are_made_anew(digits: Bundle) -> None:
    """Which is the way out that the refusal names."""
    with digits.edit() as draft:
        draft.new(GOLDEN).write_bytes(b"not a zip")
    assert "export the plans again with: fewstep export" in refused("check", digits.root)
    command = [sys.executable, "-m", "fewstep.cli", "export", str(digits.root), "--plan", "sid1", "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the references of other plans go" in done.stderr
    assert set(Bundle.load(digits.root).references()) == {"sid1"}


def test_what_was_written_comes_back(digits: Bundle, tmp_path: Path) -> None:
    references = digits.references()
    with digits.edit() as draft:
        write_golden(draft.new(GOLDEN), references)
    for plan, arrays in Bundle.load(digits.root).references().items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, references[plan][name])
    assert set(references["sid2"]) == {"noise", "labels", "states", "sample"}
    assert set(digits.references("sid2")) == {"sid2"}

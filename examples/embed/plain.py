"""A plain application: images of the labels you ask for, written as PGM or PPM, one below the other.

    python plain.py digits.bundle 3,1,4 digits.pgm --seed 7

Labels are names or numbers of classes. Needs fewstep's extra cpu and nothing else: numpy and ONNX Runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.artifact.classes import Classes
from fewstep.runtime import Generator


def pnm(images: npt.NDArray[np.uint8]) -> bytes:
    """Images (B, H, W, C) as one PGM or PPM file; in memory they already lie one below the other."""
    count, height, width, channels = images.shape
    kind = "P5" if channels == 1 else "P6"
    return f"{kind} {width} {count * height} 255\n".encode() + images.tobytes()


def main(bundle: Path, labels: str, out: Path, seed: int) -> None:
    """Write one image per label, from the seeds that count up from `seed`."""
    generator = Generator.open(bundle)  # checks hashes, picks a backend
    known = generator.signature.labels
    if known is None:
        raise ValueError(f"{bundle} makes no images of classes; name one that does")
    numbers = Classes(known.classes, known.names).read(labels)
    seeds = range(seed, seed + len(numbers))
    images = generator(labels=numbers, seeds=seeds)
    out.write_bytes(pnm(images))
    print(f"{out}: {len(images)} images by {generator.graph} on {generator.backend}, seeds {seeds[0]} to {seeds[-1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write images of a bundle as one PGM or PPM file.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("labels", help="one per image, such as 3,1,4")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the others count up")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        parser.exit(2, f"plain.py: {error}\n")

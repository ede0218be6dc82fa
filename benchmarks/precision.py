"""Eight bits against fp32, with scales for every row and with shared ones: python benchmarks/precision.py demo

Writes benchmarks/results/precision.json: image error from equal noise, Frechet distance and class accuracy over three sets of
seeds, latency in turns. Needs the bundle of a demo (make demo).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from digits import spread
from turns import Run, in_turns

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.ranges import Ranges
from fewstep.artifact.spec import Precision
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.data import open_images
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.exporter.export import export_graphs
from fewstep.runtime import Generator
from fewstep.system.machine import described

RESULT = Path(__file__).parent / "results" / "precision.json"
PLANS = ("sid1", "sid2", "table4")
SEEDS = (1, 2, 3)


def with_shared_ranges(bundle: Bundle, plan: str) -> Bundle:
    """The bundle with the widest interval of all rows in every row: what one scale for all steps would see."""
    ranges = bundle.ranges(plan)
    assert ranges is not None
    for layer in ranges.layers.values():
        for intervals in (layer.input, layer.output):
            intervals[:] = [(min(i[0] for i in intervals), max(i[1] for i in intervals))] * len(intervals)
    with bundle.edit() as draft:
        draft.new(f"ranges/{plan}.json").write_text(Ranges.model_validate(ranges.model_dump()).model_dump_json())
    return Bundle.load(bundle.root)


def images(generator: Generator, evaluator: ImageEvaluator, seed: int) -> np.ndarray:
    made = [
        generator(
            labels=evaluator.labels[i : i + 100],
            seeds=range(seed * evaluator.n + i, seed * evaluator.n + min(i + 100, evaluator.n)),
        )
        for i in range(0, evaluator.n, 100)
    ]
    return np.concatenate(made)


def generate(root: Path, plan: str, precision: Precision, batch: int) -> Run:
    generator = Generator.open(root, plan=plan, precision=precision, backend="cpu")
    labels, seeds = np.arange(batch) % 10, range(batch)
    return lambda: generator(labels=labels, seeds=seeds)


def evaluated(generators: dict[str, Generator], evaluator: ImageEvaluator) -> dict[str, Any]:
    result: dict[str, Any] = {}
    made = {name: [images(generator, evaluator, seed) for seed in SEEDS] for name, generator in generators.items()}
    for name, sets in made.items():
        scores = [evaluator.score(s.transpose(0, 3, 1, 2), evaluator.labels).numbers() for s in sets]
        result[name] = {key: spread([score[key] for score in scores]) for key in ("frechet", "accuracy")}
        if name != "fp32":
            errors = [np.square((a.astype(float) - b) / 255).mean() for a, b in zip(sets, made["fp32"], strict=True)]
            result[name]["psnr_db"] = -10 * log10(mean(errors))
            result[name]["frechet_over_fp32"] = result[name]["frechet"]["mean"] / result["fp32"]["frechet"]["mean"]
    return result


def main(demo: Path) -> None:
    train, held_out = open_images("mnist5k"), open_images("mnist5k", "held-out")
    evaluator = ImageEvaluator(feature_network("classifier", train), held_out)
    result: dict[str, Any] = {"machine": described(), "n": evaluator.n, "seeds": SEEDS, "plans": {}}
    with tempfile.TemporaryDirectory() as directory:
        for plan in PLANS:
            own, shared = Path(directory, f"{plan}.bundle"), Path(directory, f"{plan}.shared.bundle")
            shutil.copytree(demo / "digits.bundle", own)
            bundle = calibrate_ranges(Bundle.load(own), plan, ["int8"])
            shutil.copytree(own, shared)
            bundle = export_graphs(bundle, [plan], ["fp32", "int8"])
            export_graphs(with_shared_ranges(Bundle.load(shared), plan), [plan], ["int8"])
            ways: dict[str, tuple[Path, str, Precision]] = {
                "fp32": (own, plan, "fp32"),
                "int8": (own, plan, "int8"),
                "int8, shared ranges": (shared, plan, "int8"),
            }
            generators = {
                way: Generator.open(root, plan=plan, precision=precision, backend="cpu")
                for way, (root, _, precision) in ways.items()
            }
            ranges = bundle.ranges(plan)
            assert ranges is not None
            row = {
                "excluded": ranges.excluded["int8"],
                "foreseen_psnr_db": ranges.psnr_db["int8"],
                **evaluated(generators, evaluator),
            }
            row["bytes"] = {p: bundle.manifest.files[f"graphs/{plan}.{p}.onnx"].bytes for p in ("fp32", "int8")}
            for batch in (1, 8):
                row[f"latency, batch {batch}"] = in_turns(generate, {way: (*given, batch) for way, given in ways.items()})
            result["plans"][plan] = row
            print(plan, json.dumps(row, indent=1))
            RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

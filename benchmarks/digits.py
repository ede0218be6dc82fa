"""Quality and latency of the example bundle's samplers, over three sets of seeds: python benchmarks/digits.py directory demo

Reads the bundle that examples/rebuild.py left in the directory, and what `make demo` says of itself; writes
benchmarks/results/digits.json. The bundle is trained once; the spread is over the noise that images start from (and, for real
images, over the subset drawn), not over training runs.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from fewstep.cli.demo import SAMPLERS
from fewstep.data import open_images
from fewstep.evaluation.compare import make
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.runtime import Generator
from fewstep.system.machine import described

SEEDS = (1, 2, 3)  # sets of seeds
RESULT = Path(__file__).parent / "results" / "digits.json"


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "std": stdev(values)}


def main(rebuilt: Path, demo: Path) -> None:
    train, held_out = open_images("mnist5k"), open_images("mnist5k", "held-out")
    evaluator = ImageEvaluator(feature_network("classifier", train), held_out)
    made, short = (json.loads((path / "demo.json").read_text()) for path in (rebuilt, demo))
    settings = made["settings"]
    result = {
        "machine": described(),
        "seeds": SEEDS,
        "n": evaluator.n,
        "updates": {"teacher": settings["teacher"]["iterations"]}
        | {name: settings[name]["iterations"] for name in ("one_step", "two_steps")},
        "seconds_to_make": sum(made["stages"].values()),
        "demo": {"seconds": sum(short["stages"].values()), "frechet": _frechet(short)},
    }
    floor = [evaluator.floor(train, seed) for seed in SEEDS]
    held = evaluator.score(*held_out[np.arange(len(held_out))])
    result["classifier_accuracy"] = held.accuracy
    result["real_against_real"] = _row([asdict(score) for score in floor])
    result["samplers"] = {}
    for name in SAMPLERS:
        generator = Generator.open(rebuilt / "digits.bundle", plan=name, precision="fp32", backend="cpu")
        runs = [measure(generator, evaluator, seed) for seed in SEEDS]
        latencies = [run["latency_ms"] for run in runs]
        result["samplers"][name] = {
            "nfe": runs[0]["nfe"],
            **_row(runs),
            "latency_ms": {"median": median(latencies), "range": [min(latencies), max(latencies)]},
        }
        print(name, result["samplers"][name])
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _frechet(demo: dict[str, Any]) -> dict[str, float]:
    return {name: row["scores"]["frechet"]["mean"] for name, row in demo["comparison"]["plans"].items()}


def measure(generator: Generator, evaluator: ImageEvaluator, seed: int) -> dict[str, Any]:
    """Quality of the images of seeds seed * n .. (seed + 1) * n - 1, and the median latency at batch 1."""
    score = evaluator.score(make(generator, evaluator.labels, seed * evaluator.n), evaluator.labels)
    seconds = []
    for _ in range(15):
        begin = time.perf_counter()
        generator(labels=[3], seeds=[0])
        seconds.append(time.perf_counter() - begin)
    return {"nfe": generator.plan.nfe, **asdict(score), "latency_ms": median(seconds) * 1e3}


def _row(scores: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {key: spread([score[key] for score in scores]) for key in ("frechet", "accuracy")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Sequences, the whole way, against closed forms: nice -n 19 python benchmarks/sequences.py

Trains, fits, distils and exports on benchmarks/mixture.py and writes benchmarks/results/sequences.json: for three training
seeds the network's error against the best denoiser there is, and for every sampler the distances of `fewstep.evaluation.arrays`
to fresh samples, made by ONNX Runtime. Beside them what real samples come to, and the closed form itself, exported as any torch
module is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mixture
import numpy as np
import torch
from board import SEEDS
from runs import Runs

import fewstep
from fewstep.data.arrays import ArraySamples, open_arrays
from fewstep.data.samples import digest
from fewstep.evaluation.arrays import ArrayEvaluator
from fewstep.models.denoiser import load_network
from fewstep.trainer.batches import open_examples

COUNT, HELD_OUT, ITERATIONS, DISTILLED = 8000, 2000, 4000, 1500
LEVELS = (0.05, 0.2, 0.5, 1.0, 3.0)


def fresh(like: ArraySamples, seed: int) -> ArraySamples:
    """Samples that no one has seen, HELD_OUT of them, described as those a network learnt from."""
    values, observation = mixture.draw(HELD_OUT, seed)
    index = np.arange(HELD_OUT)
    about: dict[str, Any] = {"arrays": {"observation": observation}, "sha256": digest(values)}
    return ArraySamples("fresh", like.signature, values, index, index, **about)


def error(bundle: fewstep.Bundle, held_out: ArraySamples) -> dict[str, float]:
    """How far a network's D is from the closed form, over how far the mean of the data is, at several noise levels."""
    denoiser, found = load_network(bundle, "teacher"), {}
    x0 = torch.from_numpy(held_out[np.arange(HELD_OUT)][0])
    observation = torch.from_numpy(held_out.arrays["observation"])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for level in LEVELS:
        sigma = torch.full((HELD_OUT,), level)
        best = mixture.denoised(x0 + level * noise, sigma, observation, bundle.manifest.output)
        with torch.no_grad():
            made = denoiser(x0 + level * noise, sigma, observation)
        found[f"error at {level:g}"] = float((made - best).square().mean().sqrt() / best.std())
    return found


def evaluated(
    bundle: fewstep.Bundle, plan: str, evaluator: ArrayEvaluator, held_out: ArraySamples, seed: int
) -> dict[str, float]:
    """Distances of what a plan's graph makes."""
    generator = fewstep.Generator(bundle, plan=plan)
    made = generator(seeds=range(seed * HELD_OUT, (seed + 1) * HELD_OUT), observation=held_out.arrays["observation"])
    return evaluator.score(np.moveaxis(made, -1, 1)).numbers() | {"calls": float(bundle.plan(plan).nfe)}


def main() -> None:
    runs = Runs("sequences", n=HELD_OUT, iterations=ITERATIONS, distilled=DISTILLED)
    with tempfile.TemporaryDirectory() as directory:
        data = mixture.write(Path(directory, "push.npz"), COUNT, 0)
        like = open_arrays(data)
        held_out, others = fresh(like, 1), fresh(like, 2)
        evaluator = ArrayEvaluator(held_out)
        observed = held_out.arrays["observation"]
        for seed in SEEDS:
            for name, made in (("real samples", _same(held_out, seed + 10)), ("without what was observed", others.rows)):
                runs.add(name, seed, evaluator.score(np.moveaxis(made, -1, 1)).numbers())
        edm = fewstep.Edm(sigma_data=1.0)
        exact = fewstep.export(
            mixture.Exact(like.signature.output, edm),
            Path(directory, "exact.bundle"),
            state=mixture.WALKED,
            parametrisation=edm,
            plans={"heun18": fewstep.solvers.heun(edm.grid(18)), "dpmpp6": fewstep.solvers.dpmpp_2m(edm.grid(6))},
            inputs=mixture.INPUTS,
            output=like.signature.output,
        )
        for seed in SEEDS:
            for plan in exact.manifest.plans:
                runs.add(f"closed form, {plan}", seed, evaluated(exact, plan, evaluator, held_out, seed))
        for seed in SEEDS:
            bundle = _made(Path(directory, f"{seed}.bundle"), data, seed, observed)
            runs.add("teacher", seed, error(bundle, held_out))
            for plan in bundle.manifest.plans:
                runs.add(f"teacher's {plan}", seed, evaluated(bundle, plan, evaluator, held_out, seed))


def _same(held_out: ArraySamples, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Other real samples of the same observations."""
    rng = np.random.default_rng(seed)
    centers = mixture.means(held_out.arrays["observation"].astype(np.float64))
    chosen = centers[rng.integers(2, size=HELD_OUT), np.arange(HELD_OUT)]
    noise = np.einsum("ts,nsc->ntc", np.linalg.cholesky(mixture.covariance()), rng.standard_normal(chosen.shape))
    return (chosen + noise * mixture.UNITS).astype(np.float32)


def _made(path: Path, data: Path, seed: int, observed: np.ndarray[Any, Any]) -> fewstep.Bundle:
    """A bundle with a teacher, a table of four calls, and generators of one and two."""
    about = {"kind": "edm", "sigma_data": 1.0, "noise_mean": -0.6, "batch": 128, "lr": 1e-3, "seed": seed}
    bundle = fewstep.train(path, open_examples(str(data)), iterations=ITERATIONS, **about)
    arrays = {"observation": observed}
    bundle = fewstep.calibrate(bundle, "table4", arrays=arrays, steps=4, iterations=60, seed=seed)
    for steps in (1, 2):
        settings = {"steps": steps, "iterations": DISTILLED, "batch": 128, "guidance": 1.0, "lr": 3e-4, "seed": seed}
        bundle = fewstep.distill(bundle, f"sid{steps}", arrays=arrays, **settings)
    return fewstep.export(bundle, plans=list(bundle.manifest.plans))


if __name__ == "__main__":
    main()

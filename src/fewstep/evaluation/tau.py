"""Which tau a teacher is to be trained with: short runs of equal compute, evaluated at few steps. S2-DMs, arXiv 2401.01520."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Trained
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images
from fewstep.evaluation.comparison import Spread
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.sampling.guidance import PLAIN, Guidance
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import Grid
from fewstep.system.progress import Track, silent
from fewstep.trainer.checkpoint import FREE
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import train_teacher

__all__ = ["TauConfig", "best_tau", "search_tau"]


@dataclass(frozen=True)
class TauConfig:
    """What to try.

    Args:
        teacher: settings of every run, but for tau and seed.
        taus: 1, which is the plain loss, among them.
        seeds: training runs of each tau, 2 or more.
        steps: of the solver that samples are made with.

    Raises:
        ValueError: for taus without 1, a single one, or fewer than 2 seeds.
    """

    teacher: TeacherConfig
    taus: tuple[float, ...] = (0.5, 0.9, 0.99, 1.0)
    seeds: int = 3
    steps: int = 10

    def __post_init__(self) -> None:
        if len(set(self.taus)) < 2 or 1.0 not in self.taus:
            raise ValueError(f"a search compares taus with 1, which is the plain loss; got {list(self.taus)}")
        if self.seeds < 2:
            raise ValueError(f"a spread needs 2 or more training runs of each tau, got {self.seeds}")


def search_tau(
    out: Path,
    images: Images,
    config: TauConfig,
    solver: Callable[[Grid, Guidance], Plan],
    evaluator: ImageEvaluator,
    *,
    track: Track = silent,
) -> dict[float, Spread]:
    """Train every tau with every seed into bundles of the directory `out`, and the Frechet distance of each tau.

    Bundles that are there are kept, so a stopped search goes on. The spread is over training runs; noise and labels that images
    are made from are the same for all.

    Args:
        out: the directory of the bundles.
        images: to train on.
        config: what to try.
        solver: writes the plan that samples are made with, without guidance.
        evaluator: with real images to compare with.
        track: shows progress.

    Returns:
        Mean and deviation of the distances over seeds, by tau.

    Raises:
        ValueError: for a bundle of other settings or images.
    """
    out.mkdir(parents=True, exist_ok=True)
    found, settings = {}, config.teacher
    for tau in config.taus:
        distances = []
        for seed in range(config.seeds):
            path = out / f"tau{tau:g}-seed{seed}.bundle"
            if not path.exists():
                train_teacher(path, images, replace(settings, tau=tau, seed=seed), track=track)
            bundle = Bundle.load(path)
            _refuse_others(bundle, replace(settings, tau=tau, seed=seed), images)
            # All alike, also where the search goes on on a machine that is quicker at another precision.
            settings = replace(settings, mixed_precision=_record(bundle).mixed_precision)
            teacher = Teacher(bundle)
            inputs = teacher.draw(evaluator.n, seed=0, labels=evaluator.labels)
            plan = solver(teacher.denoiser.parametrisation.grid(config.steps), PLAIN)
            distances.append(evaluator.distance(teacher.outputs(plan, inputs, track=track)))
        found[tau] = Spread(mean=mean(distances), std=stdev(distances))
    return found


def _record(bundle: Bundle) -> Trained:
    record = bundle.manifest.records.components.get("teacher")
    if not isinstance(record, Trained):
        raise ValueError(f"{bundle.root} has no teacher that was trained by a search; give --out another directory")
    return record


def _refuse_others(bundle: Bundle, config: TeacherConfig, images: Images) -> None:
    wanted = asdict(config) | {"data_sha256": images.sha256}
    if config.mixed_precision == "auto":  # the first run says what that came to
        del wanted["mixed_precision"]
    record = _record(bundle)
    about = record.settings | {"mixed_precision": record.mixed_precision, "data_sha256": record.data_sha256}
    for key, value in json.loads(json.dumps(wanted)).items():
        if key not in FREE and about[key] != value:
            raise ValueError(
                f"{bundle.root} was trained with {key} {about[key]!r}, and this search has {value!r}; repeat the earlier "
                "search's options, or give --out another directory"
            )


def best_tau(found: dict[float, Spread]) -> float:
    """The tau with the lowest distance where it beats the plain loss by more than both spreads, else 1."""
    best = min(found, key=lambda tau: found[tau].mean)
    plain = found[1.0]
    return best if plain.mean - found[best].mean > (plain.std**2 + found[best].std ** 2) ** 0.5 else 1.0

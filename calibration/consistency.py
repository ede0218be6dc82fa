"""The consistency phenomenon: two networks trained apart make similar images of the same noise. arXiv 2404.07946, section 3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from fewstep.calibration.inputs import Drawn
from fewstep.calibration.teacher import Teacher
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent

__all__ = ["Consistency", "consistency"]


@dataclass(frozen=True)
class Consistency:
    """Mean cosine similarity and mean square distance of last states of equal noise and condition, and of unrelated noise.

    The cosine is that of what a state has beyond the mean of its set, else a common background would make all alike.

    Args:
        cosine, mse: of equal noise and condition; mse in squares of a state's numbers.
        unrelated_cosine, unrelated_mse: of unrelated noise.
    """

    cosine: float
    mse: float
    unrelated_cosine: float
    unrelated_mse: float


def consistency(
    teachers: tuple[Teacher, Teacher], plans: tuple[Plan, Plan], inputs: Drawn, *, track: Track = silent
) -> Consistency:
    """Compare what two teachers make of the same inputs, each by its plan; unrelated pairs share a condition that is in turn.

    Args:
        teachers: networks whose states have one shape.
        plans: of each of them, without noise on the way.
        inputs: more than one turn of the classes, so that unrelated samples share them and nothing else.
        track: shows progress.

    Raises:
        ValueError: for teachers whose states have other shapes, plans that add noise, or too few samples.
    """
    shapes = [teacher.manifest.state.shape for teacher in teachers]
    if shapes[0] != shapes[1]:
        raise ValueError(f"two networks are compared on states of one shape, got {shapes[0]} and {shapes[1]}")
    if any(plan.draws > 1 for plan in plans):
        raise ValueError("the images of a plan that adds noise do not follow from the first noise; compare plans that add none")
    first, second = (teacher.sample(plan, inputs, track=track) for teacher, plan in zip(teachers, plans, strict=True))
    labels = teachers[0].manifest.signature.labels
    turn = labels.classes if labels else 1
    if turn % len(first) == 0:  # each would meet itself
        raise ValueError(f"samples are compared with others of their class: more than {turn} are needed, got {len(first)}")
    return Consistency(*_apart(first, second), *_apart(first, second.roll(turn, 0)))


def _apart(first: Tensor, second: Tensor) -> tuple[float, float]:
    beyond = [(states - states.mean(0)).flatten(1) for states in (first, second)]
    return float(cosine_similarity(beyond[0], beyond[1]).mean()), float((first - second).square().mean())

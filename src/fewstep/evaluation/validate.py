"""What tells a distillation how good its generator is, for the loss does not."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images
from fewstep.data.arrays import ArraySamples
from fewstep.data.inputs import Arrays
from fewstep.evaluation.arrays import ArrayEvaluator
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.features import trial_evaluator
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent

__all__ = ["validator"]

SAMPLES = 500


def validator(
    bundle: Bundle,
    samples: Images | ArraySamples,
    *,
    count: int = SAMPLES,
    arrays: Arrays | None = None,
    track: Track = silent,
) -> Callable[[Denoiser, Plan], float]:
    """The distance of what a network makes to about `count` of these, training ones, from the same noise at every look.

    Of images it is the Frechet distance in another classifier than the one that evaluates in the end; of arrays, their energy
    distance.

    Args:
        bundle: that the network belongs to; its own teacher is loaded, and not what is evaluated.
        samples: training ones, with the arrays they were made from where there are some.
        count: about how many are compared with.
        arrays: what the labels of samples count, where these have none of their own.
        track: shows the training of a classifier.

    Returns:
        The distance of what a network makes with a plan; lower is better.
    """
    evaluator: Evaluator
    if isinstance(samples, ArraySamples):
        evaluator = ArrayEvaluator(samples.about(count))
    else:
        evaluator = trial_evaluator(samples, count, track=track)
    maker, known = Teacher(bundle), samples.arrays or arrays

    def distance(denoiser: Denoiser, plan: Plan) -> float:
        maker.denoiser, maker.device = denoiser, next(denoiser.parameters()).device
        if maker.decoder is not None:
            maker.decoder.to(maker.device)
        inputs = maker.draw(evaluator.n, seed=0, draws=plan.draws, labels=evaluator.labels, arrays=known)
        return evaluator.distance(maker.outputs(plan, inputs))

    return distance

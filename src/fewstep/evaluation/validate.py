"""What tells a distillation how good its generator is, for the loss does not."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images
from fewstep.evaluation.features import trial_judge
from fewstep.models.denoiser import Denoiser
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent

__all__ = ["validator"]

SAMPLES = 500


def validator(
    bundle: Bundle, images: Images, *, samples: int = SAMPLES, track: Track = silent
) -> Callable[[Denoiser, Plan], float]:
    """The Frechet distance of a network's images to about `samples` of these, training ones, from the same noise at every look.

    Measured in another classifier than the one that judges in the end.
    """
    judge = trial_judge(images, samples, track=track)
    maker = Teacher(bundle)

    def distance(denoiser: Denoiser, plan: Plan) -> float:
        maker.denoiser, maker.device = denoiser, next(denoiser.parameters()).device
        inputs = maker.draw(judge.n, seed=0, draws=plan.draws, labels=judge.labels)
        return judge.distance(maker.outputs(plan, inputs))

    return distance

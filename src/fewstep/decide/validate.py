"""What tells a distillation how good its generator is, for the loss does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fewstep.bundle import Bundle
from fewstep.calibration.features import feature_network
from fewstep.calibration.metrics import Judge
from fewstep.calibration.teacher import Teacher
from fewstep.calibration.toward import FITTING
from fewstep.data import Images
from fewstep.denoiser import Denoiser
from fewstep.plan import Plan
from fewstep.progress import Track, silent

__all__ = ["validator"]

SAMPLES = 500


def validator(
    bundle: Bundle, images: Images, *, samples: int = SAMPLES, track: Track = silent
) -> Callable[[Denoiser, Plan], float]:
    """The Frechet distance of a network's images to about `samples` of these, training ones, from the same noise at every look.

    Measured in another classifier than the one that judges in the end.
    """
    judge = Judge(
        feature_network("classifier", images, seed=FITTING, track=track), images.every(max(len(images) // samples, 1))
    )
    maker = Teacher(bundle)

    def distance(denoiser: Denoiser, plan: Plan) -> float:
        maker.denoiser, maker.device = denoiser, next(denoiser.parameters()).device
        inputs = maker.draw(judge.n, seed=0, draws=plan.draws)
        if inputs.condition:
            inputs = replace(inputs, condition=(torch.tensor(judge.labels),))
        return judge.distance(maker.images(plan, inputs))

    return distance

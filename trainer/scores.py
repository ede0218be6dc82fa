"""The three networks of a distillation as SiD evaluates them: guidance inside the scores, and logits from the fake one.

f^k = f(null) + k (f(condition) - f(null)) in three places: k_train where F learns, k_fake where the generator asks F, k_teacher
where it asks the teacher. Zhou et al. 2024 (arXiv 2406.01561, LSG) and 2025 (arXiv 2505.12674, Zero-CFG, Anti-CFG); Diffusion
GAN as in arXiv 2410.14919.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.models.denoiser import Denoiser
from fewstep.sampling.guidance import mix
from fewstep.trainer.levels import per_sample

__all__ = ["FakeScore", "discriminator_loss", "evaluate", "generator_loss"]

LOGIT_LIMIT = 10.0


Condition: TypeAlias = tuple[Tensor, ...]
Score: TypeAlias = Callable[..., Any]


class FakeScore(nn.Module):
    """The fake score network, which also tells images apart by the channel mean of its bottleneck: no new weights."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._seen: list[Tensor] = []
        denoiser.family.middle(denoiser.net).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # Levels of a U-Net also give what is skipped, last; blocks that carry a text along give it first.
        if isinstance(output, tuple):
            output = output[-1 if self.denoiser.family.tokens else 0]
        self._seen.append(output)

    def forward(self, x: Tensor, sigma: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """D of a state and logits, higher for what looks real.

        Args:
            x: states, (B, C, ...).
            sigma: (B,).
            condition: tensors of the inputs, (B, ...) each.

        Returns:
            D (B, C, ...), and logits (B, positions).
        """
        self._seen.clear()
        denoised = self.denoiser(x, sigma, *condition)
        features = self._seen.pop()
        family = self.denoiser.family
        if not family.tokens:  # channels come first, (B, C, h, w) of a U-Net; a transformer's are (B, tokens, C)
            features = features.flatten(2).transpose(1, 2)
        return denoised, features.float().mean(-1)


def evaluate(score: Score, x: Tensor, sigma: Tensor, condition: Condition, null: Condition, k: float | Tensor) -> Any:
    """f^k at states. One evaluation for k = 1 and 0, and where there is no condition, else one of twice the batch.

    Args:
        score: D(x, sigma, *condition), which gives a tensor or a tuple of tensors.
        x: (B, C, ...).
        sigma: (B,).
        condition, null: tensors of the inputs and what means "none", (B, ...) each.
        k: one, or one for each sample (B,).

    Returns:
        What score gives. Of a tuple, the first is mixed; the others are those of the condition, or of "none" where k = 0.
    """
    if not condition or (isinstance(k, float | int) and k == 1):
        return score(x, sigma, *condition)
    if isinstance(k, float | int) and k == 0:
        return score(x, sigma, *null)
    both = [torch.cat(pair) for pair in zip((x, sigma, *condition), (x, sigma, *null), strict=True)]
    out = score(*both)
    first, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
    conditional, unconditional = first.chunk(2)
    if isinstance(k, Tensor):
        k = per_sample(k, x)
        mixed = torch.where(k == 1, conditional, mix(conditional, unconditional, k))
    else:
        mixed = mix(conditional, unconditional, k)
    return mixed if rest is None else (mixed, *(part.chunk(2)[0] for part in rest))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What F loses by its logits of real and of generated states: the mean of both cross-entropies, (B,).

    Args:
        real, fake: logits, (B, positions).
    """
    return (functional.softplus(-real).mean(1) + functional.softplus(fake).mean(1)) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """What the generator loses by F's logits (B, positions) of its images: the cross-entropy to "real", (B,)."""
    return functional.softplus(-fake.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)).mean(1)

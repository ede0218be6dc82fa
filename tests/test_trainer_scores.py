"""The pieces of a distillation: guided scores, logits of the fake score, and where generators begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import given, small

from fewstep.sampling.parametrisation import Betas, Edm, Eps, Flow, Velocity
from fewstep.sampling.schedule import vp_signal
from fewstep.trainer.configs import Weights
from fewstep.trainer.scores import FakeScore, discriminator_loss, evaluate, generator_loss
from fewstep.trainer.sid import generator_grid

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.2, 0.4, 0.6])
LABELS, NULL = (torch.tensor([0, 1, 2]),), (torch.tensor([3, 3, 3]),)


def test_guided_scores_are_the_formula() -> None:
    denoiser = small("unet").denoiser
    calls = []

    def score(x: torch.Tensor, sigma: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return denoiser(x, sigma, *condition)

    with torch.no_grad():
        conditional, unconditional = denoiser(X, SIGMA, *LABELS), denoiser(X, SIGMA, *NULL)
        for k in (1.0, 0.0, 2.5, -1.0):
            found = evaluate(score, X, SIGMA, LABELS, NULL, k)
            torch.testing.assert_close(found, unconditional + k * (conditional - unconditional), atol=1e-5, rtol=1e-4)
        each = evaluate(score, X, SIGMA, LABELS, NULL, torch.tensor([1.0, 3.0, 0.0]))
        torch.testing.assert_close(each[1], unconditional[1] + 3 * (conditional - unconditional)[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(each[::2], torch.stack([conditional[0], unconditional[2]]), atol=1e-5, rtol=1e-4)
        plain = small("plain").denoiser
        torch.testing.assert_close(evaluate(plain, X, SIGMA, (), (), 7.0), plain(X, SIGMA))  # nothing to guide
    assert calls == [3, 3, 6, 6, 6]  # one call where one will do


@pytest.mark.parametrize(
    ("mode", "weights"), [("teacher", (1, 1, 4)), ("lsg", (4, 4, 4)), ("zero", (0, 0, 1)), ("anti", (-4, -4, 1))]
)
def test_modes_guide_where_the_papers_do(mode: str, weights: tuple[float, ...]) -> None:
    assert Weights.of(mode, 4) == weights
    with pytest.raises(ValueError, match="one of teacher, lsg, zero, anti, got 'both'"):
        Weights.of("both", 4)


@pytest.mark.parametrize("name", ["unet", "plain", "dit", "text", "sdxl", "sd3"])
def test_every_network_has_logits_without_new_weights(name: str) -> None:
    denoiser, needs = small(name)
    fake = FakeScore(denoiser)
    assert sum(p.numel() for p in fake.parameters()) == sum(p.numel() for p in denoiser.parameters())
    inputs = given(needs, 3)
    denoised, logits = fake(X, SIGMA, *inputs)
    torch.testing.assert_close(denoised, denoiser(X, SIGMA, *inputs))
    assert logits.shape[0] == 3
    assert logits.ndim == 2
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


def test_the_losses_of_telling_apart_are_cross_entropies() -> None:
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = (entropy(real, torch.ones(1, 2)) + entropy(fake, torch.zeros(1, 2))) / 2
    torch.testing.assert_close(discriminator_loss(real, fake), expected[None])
    torch.testing.assert_close(generator_loss(fake), entropy(fake, torch.ones(1, 2))[None])
    torch.testing.assert_close(generator_loss(torch.tensor([[-50.0]])), generator_loss(torch.tensor([[-10.0]])))


def test_where_generators_begin() -> None:
    np.testing.assert_allclose(generator_grid(Edm(sigma_data=0.5), 4).sigmas, [2.5, 1.875, 1.25, 0.625, 0])
    np.testing.assert_allclose(generator_grid(Flow(), 4).sigmas, [1, 0.75, 0.5, 0.25, 0])
    for parametrisation in (Eps(), Velocity(betas=Betas(kind="scaled_linear"))):
        signal = vp_signal(scaled=parametrisation.betas.kind == "scaled_linear")
        np.testing.assert_allclose(generator_grid(parametrisation, 4).alphas[:-1] ** 2, signal[[625, 468, 312, 156]])

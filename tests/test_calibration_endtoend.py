"""Tables fitted as a whole: they begin as a plan, and end nearer to the many-step image, on noise they have not seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Fitted
from fewstep.calibration import calibrate as calibrating
from fewstep.calibration import endtoend
from fewstep.calibration.calibrate import calibrate_table
from fewstep.calibration.configs import TableConfig
from fewstep.calibration.endtoend import Energy, Pair, Real, Table, TableFit, fit_table
from fewstep.calibration.teacher import Teacher
from fewstep.data import Images
from fewstep.evaluation.classifier import Classifier
from fewstep.evaluation.metrics import Features
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm, Eps, Flow
from fewstep.sampling.solvers import ddim, dpmpp_2m, heun


@pytest.mark.parametrize("parametrisation", [Edm(sigma_data=0.5), Eps()], ids=lambda p: p.kind)
@pytest.mark.parametrize("solver", [ddim, dpmpp_2m])
def test_a_table_starts_as_the_plan_it_is_given(parametrisation, solver) -> None:
    plan = solver(parametrisation.grid(5), Guidance(2.0, 0.1, 10.0))
    found = Table(plan, parametrisation).plan()
    for name in ("alphas", "sigmas", "a", "b", "guidance"):
        np.testing.assert_allclose(getattr(found, name), getattr(plan, name), rtol=2e-3, atol=2e-6)


def test_a_flow_below_pure_noise() -> None:
    grid = Flow().coordinates(Edm(sigma_data=0.5).grid(4))
    np.testing.assert_allclose(Table(ddim(grid), Flow()).plan().sigmas, grid.sigmas, rtol=1e-5, atol=1e-7)


def test_a_table_walks_as_its_plan_does(digits: Bundle) -> None:
    teacher = Teacher(digits)
    plan = dpmpp_2m(teacher.denoiser.parametrisation.grid(4), Guidance(2.0, 0.1, 10.0))
    table, inputs = Table(plan, teacher.denoiser.parametrisation), teacher.draw(4, seed=0)
    with torch.no_grad():
        walked = table(teacher.denoiser, inputs)
    torch.testing.assert_close(walked, teacher.sample(table.plan(), inputs), atol=2e-4, rtol=1e-4)


def test_a_fit_comes_nearer_on_noise_it_has_not_seen(digits: Bundle) -> None:
    """From a grid that is far from good, in few iterations."""
    teacher = Teacher(digits)
    parametrisation = teacher.denoiser.parametrisation
    seen, unseen = (teacher.draw(16, seed=seed) for seed in (0, 1))
    targets, unseen_targets = (teacher.sample(heun(parametrisation.grid(10)), inputs) for inputs in (seen, unseen))
    start = dpmpp_2m(parametrisation.grid(3))

    def halves(step: int) -> Pair:
        index = slice(8 * (step % 2), 8 * (step % 2) + 8)
        return seen[index], targets[index]

    def fitted() -> TableFit:
        table = Table(start, parametrisation)
        return fit_table(table, teacher.denoiser, halves, (unseen, unseen_targets), iterations=20, batch=8, lr=0.02)

    found = fitted()
    assert min(found.losses) < 0.9 * found.losses[0]
    made = teacher.sample(found.plan, unseen)
    assert float((made - unseen_targets).square().mean()) == pytest.approx(min(found.losses), rel=1e-3)
    np.testing.assert_array_equal(fitted().plan.b, found.plan.b)


def test_a_stopped_fit_of_a_table_goes_on_to_the_same_table(digits: Bundle, tmp_path: Path, monkeypatch) -> None:
    config = TableConfig(steps=2, guidance=2.0, lo=0.1, hi=10.0, samples=8, unseen=4, batch=4, iterations=6)
    model = Classifier(1, 10).eval()
    real = Real("", [model], [torch.randn(5, model.num_features)])
    monkeypatch.setattr(endtoend, "EVERY", 2)

    def stop(steps, name):
        for step in steps:
            if (name, step) == ("fit table", 3):
                raise KeyboardInterrupt
            yield step

    _, whole = calibrate_table(digits, config, name="whole", real=real, cache=tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        calibrate_table(digits, config, name="t", real=real, cache=tmp_path / "two", track=stop)
    walked: list[int] = []
    _, resumed = calibrate_table(digits, config, name="t", real=real, cache=tmp_path / "two", track=noted(walked))
    assert walked == [2, 3, 4, 5]
    assert resumed.losses == whole.losses
    for name in ("sigmas", "a", "b", "guidance"):
        np.testing.assert_array_equal(getattr(resumed.plan, name), getattr(whole.plan, name))

    walked.clear()  # what is finished is read alone, and other images are another fit
    _, again = calibrate_table(digits, config, name="again", real=real, cache=tmp_path / "two", track=noted(walked))
    assert not walked
    np.testing.assert_array_equal(again.plan.b, whole.plan.b)
    other = real._replace(features=[real.features[0] + 1])
    calibrate_table(digits, config, name="other", real=other, cache=tmp_path / "two", track=noted(walked))
    assert walked == [0, 1, 2, 3, 4, 5]


def fitted_of(bundle: Bundle) -> Fitted:
    """How the plan t came about."""
    record = bundle.manifest.records.plans["t"]
    assert isinstance(record, Fitted)
    return record


def noted(walked: list[int]):
    """A track that writes down the updates of a fit."""

    def track(steps, name):
        for step in steps:
            if name == "fit table":
                walked.append(step)
            yield step

    return track


def test_a_guided_table_keeps_which_rows_are_guided(digits: Bundle) -> None:
    bundle, found = calibrate_table(
        digits, TableConfig(steps=3, guidance=2.0, lo=0.1, hi=10.0, samples=4, unseen=4, batch=4, iterations=2), name="t"
    )
    np.testing.assert_array_equal(bundle.plan("t").b, found.plan.b)
    assert bundle.plan("t").guided
    assert fitted_of(bundle).losses == found.losses
    bundle.verify()


def test_one_call_is_a_table_too(digits: Bundle) -> None:
    _, found = calibrate_table(digits, TableConfig(steps=1, samples=4, unseen=4, batch=4, iterations=1), name="t")
    assert found.plan.rows == 1


def test_the_energy_distance_is_smallest_for_the_set_itself() -> None:
    real = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    loss = Energy(Real("", [torch.nn.Identity()], [real]), SimpleNamespace(in_units=lambda states: states, device="cpu"))  # type: ignore[arg-type]
    same = loss(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), real)
    for other in (0.3, 3.0):
        assert loss(other * torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), real) > same
    assert loss(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) + 1, real) > same


def test_no_fit_toward_real_images_buys_features_with_brightness() -> None:
    """Features that see shapes alone are as near for images that are burnt out; the loss of a fit is not."""

    class Shapes(Features):
        num_features, head = 64, None

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.float().flatten(1)
            return ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)).unflatten(1, (8, 8)).flatten(1)

    pixels = np.random.default_rng(0).integers(60, 120, (100, 8, 8, 1), np.uint8)
    teacher: Any = SimpleNamespace(in_units=lambda states: states, device="cpu")
    real = Real.of(Images.of(pixels, split="all"), Shapes())
    others = torch.tensor(np.random.default_rng(1).integers(60, 120, (100, 1, 8, 8))).float()
    blind = Real(real.data, real.models[:1], real.features[:1])
    for burnt in (others * 2, others * 1.5 + 40, others * 0.4):
        assert float(Energy(blind, teacher)(burnt, None)) == pytest.approx(
            float(Energy(blind, teacher)(others, None)), abs=1e-4
        )
        assert float(Energy(real, teacher)(burnt, None)) > float(Energy(real, teacher)(others, None)) + 0.5


def test_several_networks_count_alike_whatever_their_scale() -> None:
    real, made = torch.randn(50, 3), torch.randn(20, 3)

    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1000 * x

    def energy(*models: torch.nn.Module) -> float:
        found = Real("", models, [model(real) for model in models])  # type: ignore[arg-type]
        return float(Energy(found, SimpleNamespace(in_units=lambda states: states, device="cpu"))(made, None))  # type: ignore[arg-type]

    assert energy(torch.nn.Identity(), Scaled()) == pytest.approx(2 * energy(torch.nn.Identity()), rel=1e-5)


def test_toward_real_images_every_iteration_sees_other_noise(digits: Bundle, tmp_path: Path, monkeypatch) -> None:
    seen: list[torch.Tensor] = []

    def noted_fit(table, denoiser, batches, unseen, **settings):
        for step in range(3):
            inputs, targets = batches(step)
            seen.append(inputs.noise)
            assert targets is None
        assert torch.equal(batches(1)[0].noise, seen[1])  # so that a stopped fit goes on
        return fit_table(table, denoiser, batches, unseen, **settings)

    monkeypatch.setattr(calibrating, "fit_table", noted_fit)
    model = Classifier(1, 10).eval()
    real = Real("", [model], [torch.randn(5, model.num_features)])
    config = TableConfig(steps=1, samples=2, unseen=4, batch=4, iterations=3)
    bundle, _ = calibrate_table(digits, config, name="t", real=real, cache=tmp_path)
    with pytest.raises(ValueError, match="needs a batch of 2 or more"):
        calibrate_table(digits, TableConfig(batch=1), name="t", real=real, cache=tmp_path)
    noise = torch.cat(seen).flatten(1)
    assert len(noise.unique(dim=0)) == 12  # of two samples
    assert fitted_of(bundle).features == ["Classifier"]


def test_gradients_come_from_features_to_the_numbers(digits: Bundle) -> None:
    teacher = Teacher(digits)
    parametrisation = teacher.denoiser.parametrisation
    table, inputs = Table(dpmpp_2m(parametrisation.grid(2)), parametrisation), teacher.draw(4, seed=0)
    made = table(teacher.denoiser, inputs)
    model = Classifier(1, 10).eval()
    Energy(Real("", [model], [torch.randn(5, model.num_features)]), teacher)(made, made).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in (table.log_level, table.history))
    assert float(table.log_level.grad.abs().max()) > 0  # type: ignore[union-attr]

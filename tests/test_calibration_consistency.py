"""Two networks and the same noise: closed forms, and the command."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import State
from fewstep.calibration.consistency import consistency
from fewstep.calibration.teacher import Teacher
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

WEIGHTS = "components/teacher/diffusion_pytorch_model.safetensors"
PLAN = ddim(karras(3, 0.002, 80.0))


def test_the_figures_are_those_of_the_states(digits: Bundle) -> None:
    first, second = Teacher(digits), Teacher(digits)
    inputs = first.draw(20, seed=0)
    same = consistency((first, second), (PLAN, PLAN), inputs)
    assert (same.cosine, same.mse) == (pytest.approx(1.0), 0.0)
    x = first.sample(PLAN, inputs)
    assert same.unrelated_mse == pytest.approx(float((x - x.roll(10, 0)).square().mean()))
    assert same.unrelated_cosine < 0.7
    with torch.no_grad():
        for parameter in second.denoiser.parameters():
            parameter.mul_(1.01)
    moved = consistency((first, second), (PLAN, PLAN), inputs)
    y = second.sample(PLAN, inputs)
    assert moved.mse == pytest.approx(float((x - y).square().mean()))
    assert same.unrelated_cosine < moved.cosine < 1
    with pytest.raises(ValueError, match="compare plans that add none"):
        consistency((first, second), (PLAN, digits.plan("sid2")), inputs)
    second.manifest = second.manifest.model_copy(update={"state": State(channels=1, axes=(14, 28))})
    with pytest.raises(ValueError, match="states of one shape"):
        consistency((first, second), (PLAN, PLAN), inputs)


def test_the_command(digits: Bundle, tmp_path) -> None:
    with digits.edit() as draft:
        weights = {key: value * 1.01 for key, value in load_file(digits.root / WEIGHTS).items()}
        save_file(weights, draft.new(WEIGHTS))
    from conftest import ROOT

    found = json.loads(fewstep("consistency", digits.root, ROOT / "examples/digits.bundle", "--samples", 4, "--json").stdout)
    assert found["unrelated_mse"] > found["mse"] > 0
    assert "has no plan 'ddim3'" in refused("consistency", digits.root, digits.root, "--plan", "ddim3")


def test_unrelated_samples_are_others(digits: Bundle) -> None:
    teacher = Teacher(digits)
    with pytest.raises(ValueError, match="more than 10 are needed, got 10"):
        consistency((teacher, teacher), (PLAN, PLAN), teacher.draw(10, seed=0))

"""Plans used elsewhere than where they were fitted: the same numbers, and a warning that says so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import fewstep

from fewstep.artifact.adopt import adopt, mismatch
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Adopted
from fewstep.calibration.calibrate import calibrate
from fewstep.calibration.configs import FitConfig
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Flow

WEIGHTS = "components/teacher/diffusion_pytorch_model.safetensors"


@pytest.fixture
def fitted(digits: Bundle) -> Bundle:
    return calibrate(digits, FitConfig(steps=3, samples=8, fine=4), name="fit3")[0]


def test_a_plan_is_the_same_elsewhere_and_says_where_it_is_from(fitted: Bundle, tmp_path) -> None:
    assert mismatch(fitted, "fit3") is None
    assert mismatch(fitted, "sid1") is None  # nothing was fitted
    shutil.copytree(fitted.root, tmp_path / "tuned.bundle")
    tuned = Bundle.load(tmp_path / "tuned.bundle")
    with tuned.edit() as draft:
        weights = {key: value * 1.01 for key, value in load_file(tuned.root / WEIGHTS).items()}
        save_file(weights, draft.new(WEIGHTS))
        del draft.manifest.plans["fit3"], draft.manifest.records.plans["fit3"]
    done = adopt(Bundle.load(tuned.root), fitted, "fit3", name="theirs")
    for table in ("alphas", "sigmas", "a", "b", "guidance"):
        np.testing.assert_array_equal(getattr(done.plan("theirs"), table), getattr(fitted.plan("fit3"), table))
    record = done.manifest.records.plans["theirs"]
    assert record.adopted == Adopted(bundle="digits", plan="fit3")
    assert record.model_copy(update={"adopted": None}) == fitted.manifest.records.plans["fit3"]
    assert "was fitted with other weights than those of 'teacher' now" in mismatch(done, "theirs")
    exported = fewstep("export", done.root, "--plan", "theirs", "--precision", "fp32")
    assert "warning: the plan 'theirs' was fitted with other weights" in exported.stderr


def test_a_plan_that_nobody_fitted_says_where_it_is_from_all_the_same(fitted: Bundle) -> None:
    done = adopt(fitted, fitted, "heun18", name="theirs", guidance=Guidance(2.0))
    assert done.manifest.records.plans["theirs"] == Adopted(bundle="digits", plan="heun18", guidance=Guidance(2.0).settings())
    assert mismatch(done, "theirs") is None
    again = adopt(done, done, "theirs", name="again")
    assert again.manifest.records.plans["again"] == Adopted(bundle="digits", plan="theirs")


def test_another_guidance_is_another_plan(fitted: Bundle) -> None:
    done = fewstep("adopt", fitted.root, "--plan", "fit3", "--name", "fit3_w2", "--guidance", 2, "--lo", 0.1, "--hi", 10)
    assert "was fitted with another guidance; compare it" in done.stderr
    again = Bundle.load(fitted.root)
    levels = again.plan("fit3").sigmas[:-1]
    np.testing.assert_array_equal(again.plan("fit3_w2").guidance, Guidance(2.0, 0.1, 10.0).at(levels))
    np.testing.assert_array_equal(again.plan("fit3_w2").b, again.plan("fit3").b)
    assert mismatch(again, "fit3") is None


def test_other_coordinates_are_refused(fitted: Bundle) -> None:
    flow = Bundle(fitted.root, fitted.manifest.model_copy(deep=True))
    components = flow.manifest.components
    components["teacher"] = components["teacher"].model_copy(update={"parametrisation": Flow()})
    flow.manifest.plans = {"flow": PlanEntry.of(fitted.plan("fit3"), denoiser="teacher", solver="")}
    with pytest.raises(ValueError, match="is in flow coordinates, the network 'teacher' in edm ones"):
        adopt(fitted, flow, "flow", name="theirs")
    with pytest.raises(ValueError, match="has no network 'student'"):
        adopt(fitted, fitted, "fit3", name="theirs", denoiser="student")

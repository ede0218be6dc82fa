"""Fits of a bundle's network: the plan they add, the cache, the conditions they draw."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_in_processes
from safetensors.torch import save_file
from small import TEXT, small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.digests import component_digest, model_digest
from fewstep.artifact.records import Fitted
from fewstep.calibration.calibrate import calibrate
from fewstep.calibration.configs import FitConfig
from fewstep.calibration.inputs import draw
from fewstep.models.denoiser import save_network
from fewstep.system.arrays import read_arrays

QUICK = FitConfig(steps=3, samples=8, fine=2, batch=4)


def test_a_bundle_gains_the_plan_and_where_it_came_from(digits: Bundle, tmp_path: Path) -> None:
    config = FitConfig(method="iia-ddim-guided", steps=3, guidance=2.0, lo=0.1, fine=2, samples=8)
    bundle, fit = calibrate(digits, config, name="fitted", cache=tmp_path / "cache")
    np.testing.assert_array_equal(bundle.plan("fitted").a, fit.plan.a)
    kept = bundle.manifest.records.plans["fitted"]
    assert isinstance(kept, Fitted)
    assert [step["after"] for step in kept.steps] == [step.after for step in fit.steps]
    assert kept.settings == asdict(config)
    assert kept.network_sha256 == model_digest(bundle.manifest, "teacher")
    bundle.verify()


def test_fitted_steps_are_read_from_the_cache_and_a_stopped_fit_goes_on(digits: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bundle, first = calibrate(digits, QUICK, name="first", cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_text()
    bundle, again = calibrate(bundle, QUICK, name="again", cache=cache)
    assert again.calls < first.calls
    np.testing.assert_array_equal(again.plan.b, first.plan.b)
    half = json.loads(whole)
    half["value"] = half["value"][:1]
    file.write_text(json.dumps(half))
    bundle, resumed = calibrate(bundle, QUICK, name="resumed", cache=cache)
    assert again.calls < resumed.calls < first.calls
    np.testing.assert_array_equal(resumed.plan.b, first.plan.b)
    assert file.read_text() == whole
    file.write_text(whole[:50])  # cut off
    assert calibrate(bundle, QUICK, name="anew", cache=cache)[1].calls == first.calls


def test_other_weights_are_another_network(digits: Bundle) -> None:
    before = component_digest(digits.manifest, "teacher")
    with digits.edit() as draft:
        (weights,) = (draft.root / "components" / "teacher").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        draft.new(weights.relative_to(draft.root).as_posix()).write_bytes(content)
    assert component_digest(Bundle.load(digits.root).manifest, "teacher") != before


def _text_bundle(path: Path) -> Bundle:
    network = small("text")
    with Draft.create(path, network.signature) as draft:
        save_network(draft, "teacher", network.denoiser)
    return Bundle.load(path)


def test_arrays_come_from_a_file(tmp_path: Path) -> None:
    bundle = _text_bundle(tmp_path / "text.bundle")
    with pytest.raises(ValueError, match=r"cannot be drawn at random; give .*negative_prompt_embeds, prompt_embeds, got none"):
        calibrate(bundle, QUICK, name="fitted", cache=tmp_path)
    (embeds,) = (each.tensor for each in TEXT)
    tensors = {"prompt_embeds": torch.randn(3, *embeds.shape), "negative_prompt_embeds": torch.randn(1, *embeds.shape)}
    save_file(tensors, tmp_path / "prompts.safetensors")
    given = read_arrays(tmp_path / "prompts.safetensors")
    inputs = draw(bundle.manifest, 7, arrays=given)
    assert torch.equal(inputs.condition[0][3], tensors["prompt_embeds"][0])
    assert torch.equal(inputs.null[0][6], tensors["negative_prompt_embeds"][0])
    bundle, fit = calibrate(bundle, QUICK, name="fitted", arrays=given, cache=tmp_path)
    assert all(step.after <= step.before for step in fit.steps)
    turned = given | {"prompt_embeds": -given["prompt_embeds"]}  # other prompts: nothing of the first fit is taken
    assert calibrate(bundle, QUICK, name="turned", arrays=turned, cache=tmp_path)[1].calls == fit.calls
    with pytest.raises(ValueError, match=r"the array prompt_embeds has shape \(N, 5, 12\), got \(3, 5, 11\)"):
        draw(bundle.manifest, 7, arrays=given | {"prompt_embeds": given["prompt_embeds"][..., 1:]})
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match=r"cut.safetensors is not readable"):
        read_arrays(tmp_path / "cut.safetensors")


def test_two_processes_find_what_one_finds(digits: Bundle, tmp_path: Path) -> None:
    script = """
from pathlib import Path
from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import calibrate, calibrate_table
from fewstep.calibration.configs import FitConfig, TableConfig
out = Path(sys.argv[1])
calibrate(Bundle.load(sys.argv[2]), FitConfig(steps=3, samples=8, fine=2, batch=4), name=out.name, cache=out)
table = TableConfig(steps=2, samples=4, unseen=4, batch=4, iterations=2)
calibrate_table(Bundle.load(sys.argv[2]), table, name=f"table-{out.name}")
"""
    for count, name in ((1, "one"), (2, "two")):
        run_in_processes(count, script, tmp_path, tmp_path / name, digits.root)
    bundle = Bundle.load(digits.root)
    np.testing.assert_allclose(bundle.plan("two").b, bundle.plan("one").b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bundle.plan("table-two").b, bundle.plan("table-one").b, rtol=1e-4, atol=1e-6)
    record = bundle.manifest.records.plans["two"]
    assert isinstance(record, Fitted)
    assert float(str(record.steps[0]["after"])) > 0

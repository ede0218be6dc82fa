"""Fits of a bundle's network: the plan they add, the cache, the conditions they draw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_in_processes
from safetensors.torch import save_file
from small import TEXT, small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import ImageSpec
from fewstep.calibration.calibrate import FitConfig, calibrate
from fewstep.calibration.inputs import draw
from fewstep.data.embeddings import read_embeddings
from fewstep.models.denoiser import save_network
from fewstep.sampling.guidance import Guidance

QUICK = FitConfig(steps=3, samples=8, fine=2, batch=4)


def test_a_bundle_gains_the_plan_and_where_it_came_from(digits: Bundle, tmp_path: Path) -> None:
    config = FitConfig("iia-ddim-guided", 3, Guidance(2.0, 0.1), 2, 8)
    bundle, fit = calibrate(digits, config, name="fitted", cache=tmp_path / "cache")
    np.testing.assert_array_equal(bundle.plan("fitted").a, fit.plan.a)
    kept = bundle.manifest.provenance.plans["fitted"]
    assert [step["after"] for step in kept["fitted"]] == [step.after for step in fit.steps]
    assert kept["steps"] == 3
    assert kept["guidance"] == {"weight": 2.0, "lo": 0.1, "hi": None}
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
    before = digits.network_digest("teacher")
    with digits.edit() as draft:
        (weights,) = (draft.root / "networks" / "teacher").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        draft.new(weights.relative_to(draft.root).as_posix()).write_bytes(content)
    assert Bundle.load(digits.root).network_digest("teacher") != before


def _text_bundle(path: Path) -> Bundle:
    network = small("text")
    with Draft.create(path, image=ImageSpec(channels=4, height=8, width=8), condition=network.condition) as draft:
        save_network(draft, "teacher", network.denoiser)
    return Bundle.load(path)


def test_embeddings_come_from_a_file(tmp_path: Path) -> None:
    bundle = _text_bundle(tmp_path / "text.bundle")
    with pytest.raises(ValueError, match=r"cannot be drawn at random; give .*embeddings.*null_embeddings"):
        calibrate(bundle, QUICK, name="fitted", cache=tmp_path)
    shape = TEXT.tokens, TEXT.width
    tensors = {"embeddings": torch.randn(3, *shape), "null_embeddings": torch.randn(1, *shape)}
    save_file(tensors, tmp_path / "prompts.safetensors")
    given = read_embeddings(tmp_path / "prompts.safetensors")
    inputs = draw(bundle.manifest, 7, embeddings=given)
    assert torch.equal(inputs.condition[0][3], tensors["embeddings"][0])
    assert torch.equal(inputs.null[0][6], tensors["null_embeddings"][0])
    bundle, fit = calibrate(bundle, QUICK, name="fitted", embeddings=given, cache=tmp_path)
    assert all(step.after <= step.before for step in fit.steps)
    turned = given | {"embeddings": -given["embeddings"]}  # other prompts: nothing of the first fit is taken
    assert calibrate(bundle, QUICK, name="turned", embeddings=turned, cache=tmp_path)[1].calls == fit.calls
    with pytest.raises(ValueError, match=r"embeddings have shape \(N, 5, 12\), got \(3, 5, 11\)"):
        draw(bundle.manifest, 7, embeddings=given | {"embeddings": given["embeddings"][..., 1:]})
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_embeddings(tmp_path / "cut.safetensors")


def test_two_processes_find_what_one_finds(digits: Bundle, tmp_path: Path) -> None:
    script = """
from pathlib import Path
from fewstep.artifact.bundle import Bundle
from fewstep.calibration.calibrate import FitConfig, TableConfig, calibrate, calibrate_table
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
    assert bundle.manifest.provenance.plans["two"]["fitted"][0]["after"] > 0

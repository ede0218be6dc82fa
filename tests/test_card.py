"""The card says what went in, and leaves alone what somebody else wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fewstep.bundle import Bundle
from fewstep.card import MARK
from fewstep.data import Images
from fewstep.manifest import Condition, ImageSpec, PlanEntry
from fewstep.schedule import karras
from fewstep.solvers import dpmpp_2m
from fewstep.trainer.sid import distill
from fewstep.trainer.sid_config import SidConfig
from fewstep.trainer.teacher import TeacherConfig, train_teacher

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8)
CONDITION = Condition(kind="labels", classes=2)
IMAGES = Images("a|b", ImageSpec(channels=1, height=8, width=8), CONDITION, PIXELS, np.arange(32), np.arange(32) % 2)
TINY = SidConfig(iterations=1, batch=2)


def test_a_card_grows_with_its_bundle(tmp_path: Path) -> None:
    config = TeacherConfig(steps=1, batch=2, channels=(8,), patch=1)
    bundle = train_teacher(tmp_path / "small.bundle", IMAGES, config, licence="CC0 | really")
    bundle = distill(bundle, "free", TINY)
    bundle = distill(bundle, "seen", TINY, images=IMAGES, provenance={"licence": "CC0", "validated_on": "others"})
    with bundle.edit() as draft:
        plan = dpmpp_2m(karras(2, 0.002, 80.0))
        draft.manifest.plans["table"] = PlanEntry.of(plan, network="teacher", solver="a table")
        draft.manifest.provenance["table"] = {"data": "digits"}
    bundle = distill(Bundle.load(bundle.root), "tabled", replace(TINY, steps=2, plan="table"))
    bundle = distill(bundle, "chosen", replace(TINY, start="free"), validate=lambda _ema, _plan: 1.0)
    card = bundle.file("card.md").read_text("utf-8")
    assert "# small\n\nImages: 8x8, 1 channels. Condition: 2 classes." in card
    assert "| teacher | edm | training from nothing | 32 of a/b | CC0 / really |" in card
    digest = bundle.network_digest("teacher")[:12]
    assert f"| free | edm | the network teacher ({digest}), distilled | none | not stated |" in card
    assert (
        f"| seen | edm | the network teacher ({digest}), distilled | 32 of a/b; some of others, to choose the weights | CC0 |"
        in card
    )
    assert f"| tabled | edm | the network teacher ({digest}), distilled | some of digits, to fit the plan it began as" in card
    chosen = f"| chosen | edm | the network teacher ({digest}), distilled, begun as free | some of images not stated, to choose"
    assert chosen in card
    bundle.verify()


def test_ones_own_words_stay(digits: Bundle) -> None:
    with digits.edit() as draft:
        draft.new("card.md").write_text("mine", "utf-8")
    bundle = distill(Bundle.load(digits.root), "student", TINY)
    assert bundle.file("card.md").read_text("utf-8") == "mine"
    with bundle.edit() as draft:
        draft.new("card.md").write_text(f"begun\n{MARK}\n", "utf-8")
    bundle = distill(Bundle.load(digits.root), "again", TINY)
    assert "| again |" in bundle.file("card.md").read_text("utf-8")

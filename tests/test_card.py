"""The card says what went in, and leaves alone what somebody else wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.card import card, license
from fewstep.artifact.digests import component_digest
from fewstep.artifact.manifest import Manifest, PlanEntry
from fewstep.artifact.records import Fitted
from fewstep.artifact.signature import ArrayInput, ArrayOutput, Axis, Column, ImageOutput, LabelInput, Signature
from fewstep.data import Images
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.trainer.configs import SidConfig, TeacherConfig, TuneConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8)
SIGNATURE = Signature(inputs=(LabelInput(classes=2),), output=ImageOutput(channels=1, height=8, width=8))
IMAGES = Images("a|b", SIGNATURE, PIXELS, np.arange(32), np.arange(32) % 2)
TINY = SidConfig(iterations=1, batch=2)


def test_a_card_grows_with_its_bundle(tmp_path: Path) -> None:
    config = TeacherConfig(iterations=1, batch=2, channels=(8,), patch=1)
    bundle = train_teacher(tmp_path / "small.bundle", IMAGES, config, license="CC0 | really")
    bundle = distill(bundle, "free", TINY)
    bundle = distill(bundle, "seen", TINY, samples=IMAGES, license="CC0", validated_on="others")
    with bundle.edit() as draft:
        plan = dpmpp_2m(karras(2, 0.002, 80.0))
        draft.manifest.plans["table"] = PlanEntry.of(plan, denoiser="teacher", solver="a table")
        draft.manifest.records.plans["table"] = Fitted(settings={}, network_sha256="0" * 64, data="digits")
    bundle = distill(Bundle.load(bundle.root), "tabled", replace(TINY, steps=2, plan="table"))
    bundle = distill(bundle, "chosen", replace(TINY, start="free"), validate=lambda _ema, _plan: 1.0)
    config = TuneConfig(iterations=2, batch=2)
    bundle = train_teacher(bundle.root, IMAGES, config, start="teacher", name="tuned")
    text = bundle.file("card.md").read_text("utf-8")
    assert "# small\n\nImages: 8x8, 1 channels. Condition: 2 classes." in text
    assert "| teacher | edm | training from nothing | 32 of a/b | CC0 / really |" in text
    digest = component_digest(bundle.manifest, "teacher")[:12]
    assert f"| free | edm | the network teacher ({digest}), distilled | none | teacher: CC0 / really |" in text
    assert (
        f"| seen | edm | the network teacher ({digest}), distilled | 32 of a/b; some of others, to choose the weights "
        "| CC0; teacher: CC0 / really |" in text
    )
    assert f"| tabled | edm | the network teacher ({digest}), distilled | some of digits, to fit the plan it began as" in text
    chosen = f"| chosen | edm | the network teacher ({digest}), distilled, begun as free | some of images not stated, to choose"
    assert chosen in text
    assert f"| tuned | edm | the network teacher ({digest}), trained further | 32 of a/b | teacher: CC0 / really |" in text
    bundle.verify()


def test_a_license_goes_on_to_what_is_made_of_a_network(tmp_path: Path) -> None:
    config = TeacherConfig(iterations=1, batch=2, channels=(8,), patch=1)
    bundle = train_teacher(tmp_path / "small.bundle", IMAGES, config, license="CC BY-NC 4.0")
    bundle = distill(bundle, "first", TINY)
    bundle = distill(bundle, "second", replace(TINY, start="first"), license="MIT")
    bundle = distill(bundle, "third", replace(TINY, start="second"))
    assert [license(bundle.manifest, name) for name in ("teacher", "first", "second", "third")] == [
        "CC BY-NC 4.0",
        "teacher: CC BY-NC 4.0",
        "MIT; teacher: CC BY-NC 4.0",
        "teacher: CC BY-NC 4.0; second: MIT",
    ]
    with bundle.edit() as draft:  # its teacher need not stay
        del draft.manifest.components["teacher"]
        draft.remove("components/teacher")
        draft.manifest.plans = {"first": draft.manifest.plans["first"]}
        draft.manifest.default = "first"
    assert license(Bundle.load(bundle.root).manifest, "first") == "teacher: CC BY-NC 4.0"


@pytest.mark.parametrize("words", ["mine", None])
def test_whoever_changes_or_removes_the_card_is_taken_at_his_word(words: str | None, tmp_path: Path) -> None:
    config = TeacherConfig(iterations=1, batch=2, channels=(8,), patch=1)
    bundle = train_teacher(tmp_path / "small.bundle", IMAGES, config)
    card = bundle.root / "card.md"
    card.unlink()  # as an editor does, which writes a new file
    if words:
        card.write_text(words, "utf-8")
    bundle.verify()
    assert bundle.card_is_changed()
    with bundle.edit() as draft:
        draft.new("note.txt").write_text("another change")
    bundle = Bundle.load(bundle.root)
    assert not bundle.card_is_changed()
    assert (card.read_text("utf-8") if words else card.exists()) == (words or False)
    bundle.verify()
    distill(bundle, "student", TINY)
    assert card.read_text("utf-8") == words if words else "| student |" in card.read_text("utf-8")


def test_a_card_of_arrays_says_what_they_are() -> None:
    axes, columns = (Axis(name="time", size=16, unit="0.1 s"),), (Column(name="x", unit="m"), Column(name="grip"))
    inputs = (
        ArrayInput(name="observation", shape=(2, 9), null="zeros"),
        LabelInput(name="task", classes=2, names=("a", "b|c")),
    )
    signature = Signature(inputs=inputs, output=ArrayOutput(axes=axes, columns=columns))
    text = card(Manifest.model_construct(name="push", signature=signature))
    assert "Values: 16 time (0.1 s), columns x (m), grip. Condition: observation 2x9; 2 classes (0 a, 1 b/c)." in text
    assert "| network | estimates | made from | values read | license |" in text


def test_a_card_where_there_was_none_is_taken_over(digits: Bundle) -> None:
    with digits.edit() as draft:
        draft.remove("card.md")
    (digits.root / "card.md").write_text("mine", "utf-8")
    distill(Bundle.load(digits.root), "student", TINY)
    bundle = Bundle.load(digits.root)
    assert bundle.file("card.md").read_text("utf-8") == "mine"
    (digits.root / "card.md").unlink()
    (digits.root / "card.md").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is a link"), bundle.edit():
        pass

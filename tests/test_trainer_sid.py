"""Distillations, small: every space and mode, real images, a metric that decides, and runs that go wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from small import LABELS, NAMES, given, small
from torch import Tensor

import fewstep
from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.digests import component_digest
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Distilled, Look
from fewstep.artifact.signature import ImageOutput, Signature
from fewstep.data import Images
from fewstep.data.inputs import inputs_of
from fewstep.models.denoiser import Denoiser, load_network, save_network
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Plan, sample
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import dpmpp_2m
from fewstep.trainer import sid
from fewstep.trainer.checkpoint import checkpoint_path
from fewstep.trainer.configs import SidConfig
from fewstep.trainer.draws import Draws
from fewstep.trainer.sid import distill

CONFIG = {"iterations": 2, "batch": 4}
BF16 = 0.05  # what rounding in bf16 may change in an image


@pytest.fixture
def bundle_of(tmp_path: Path):
    def make(name: str) -> Bundle:
        made = small(name)
        with Draft.create(tmp_path / f"{name}.bundle", made.signature) as draft:
            save_network(draft, "teacher", made.denoiser)
        return Bundle.load(tmp_path / f"{name}.bundle")

    return make


def real(bundle: Bundle) -> Images:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 4), np.uint8)
    return Images("made up", bundle.manifest.signature, pixels, np.arange(12), np.arange(12) % 3)


def digest_of(bundle: Bundle, name: str) -> str:
    return component_digest(bundle.manifest, name)


def record_of(bundle: Bundle, name: str) -> Distilled:
    record = bundle.manifest.records.components[name]
    assert isinstance(record, Distilled)
    return record


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_in_its_own_space(name: str, steps: int, bundle_of) -> None:
    bundle = bundle_of(name)
    inputs, prompts = bundle.manifest.signature.inputs, None
    if not bundle.manifest.signature.finite:
        prompts = {each.name: values.numpy() for each, values in zip(inputs, given(inputs, 5), strict=True)}
        prompts |= {f"negative_{key}": np.zeros_like(values[:1]) for key, values in prompts.items()}
    done = distill(bundle, "student", SidConfig(**CONFIG, steps=steps, guidance=2.0), arrays=prompts)
    done.verify()
    assert done.plan("student").nfe == steps
    assert digest_of(done, "student") != digest_of(done, "teacher")
    assert all(p.isfinite().all() for p in load_network(done, "student").parameters())


def test_every_choice_makes_another_generator(bundle_of) -> None:
    bundle = bundle_of("unet")
    choices = [{"mode": mode, "guidance": 2.0} for mode in ("teacher", "lsg", "zero", "anti")]
    choices += [{}, {"alpha": 0.5}, {"steps": 2}, {"steps": 2, "match": "final", "seed": 2}, {"warmup": 0.5}]
    digests = []
    for choice in choices:
        digests.append(digest_of(distill(Bundle.load(bundle.root), "student", SidConfig(**CONFIG, **choice)), "student"))
    images = real(bundle)
    for share in (0.0, 0.5):
        config = SidConfig(**CONFIG, adversarial_from=share)
        digests.append(digest_of(distill(Bundle.load(bundle.root), "student", config, samples=images), "student"))
    assert len(set(digests)) == len(digests)
    late = distill(Bundle.load(bundle.root), "student", SidConfig(**CONFIG, adversarial_from=1.0), samples=images)
    assert digest_of(late, "student") == digests[4]  # the images never joined
    assert record_of(late, "student").data == "made up"


def test_the_teacher_is_guided_in_the_interval_alone(digits: Bundle) -> None:
    """No levels in the interval: as without guidance; all of them: as guided everywhere; some: neither."""

    def weights(**choices: float) -> Tensor:
        config = SidConfig(iterations=2, batch=8, **choices)
        student = load_network(distill(Bundle.load(digits.root), "student", config), "student")
        return torch.cat([value.flatten() for value in student.parameters()])

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().mean())

    plain, guided, part = weights(guidance=1.0), weights(guidance=2.0), weights(guidance=2.0, lo=0.1, hi=2.0)
    # A guided teacher sees both conditions in one batch: equal up to the rounding of its kernels, which Adam makes visible.
    rounding = apart(plain, guided) / 50
    assert apart(weights(guidance=2.0, lo=100.0), plain) < rounding  # levels end at 80
    assert apart(weights(guidance=2.0, lo=0.0, hi=100.0), guided) < rounding
    assert min(apart(part, plain), apart(part, guided)) > 2 * rounding


def test_a_generator_starts_as_one_of_more_steps(bundle_of) -> None:
    bundle = distill(bundle_of("unet"), "four", SidConfig(**CONFIG, steps=4))
    tiny = {"lr": 1e-12, "iterations": 1, "batch": 2}
    found = load_network(distill(bundle, "two", SidConfig(**tiny, steps=2, start="four")), "two")
    for a, b in zip(found.parameters(), load_network(bundle, "four").parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_the_weights_that_were_best_are_kept_and_patience_ends_the_run(bundle_of) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    values = iter([5.0, 2.0, 3.0, 4.0, 1.0])

    def validate(ema: Denoiser, plan: Plan) -> float:
        assert plan.rows == 1
        seen.append({key: value.clone() for key, value in ema.state_dict().items()})
        return next(values)

    config = SidConfig(iterations=10, batch=4, validate_every=2, patience=2, lr=1e-3)
    with pytest.raises(ValueError, match="patience counts looks at a metric, and there is none"):
        distill(bundle_of("plain"), "student", config)
    done = distill(bundle_of("unet"), "student", config, validate=validate)
    assert len(seen) == 4  # twice without a better one
    looks = [Look(iteration=i, value=v) for i, v in ((2, 5.0), (4, 2.0), (6, 3.0), (8, 4.0))]
    assert record_of(done, "student").metrics == looks
    kept = load_network(done, "student").state_dict()
    assert all(torch.equal(kept[key], seen[1][key]) for key in kept)
    assert any(not torch.equal(seen[1][key], seen[3][key]) for key in kept)


def test_a_run_that_stops_being_finite_goes_back_and_draws_other_numbers(bundle_of) -> None:
    bundle, spoilt = bundle_of("unet"), []
    plain = sid.sid_loss

    def once(*tensors: torch.Tensor, alpha: float) -> torch.Tensor:
        if not spoilt:
            spoilt.append(True)
            with torch.no_grad():
                next(iter(current)).fill_(float("nan"))
        return plain(*tensors, alpha=alpha)

    current: list[torch.Tensor] = []
    made = sid.SidRun.__init__

    def remember(self, *given) -> None:
        made(self, *given)
        current.append(next(self.generator.parameters()).data)

    with patch.object(sid, "sid_loss", once), patch.object(sid.SidRun, "__init__", remember):
        done = distill(bundle, "student", SidConfig(iterations=4, batch=4, checkpoint_every=2))
    assert record_of(done, "student").retries == 1
    assert all(p.isfinite().all() for p in load_network(done, "student").parameters())


def test_a_run_that_never_stays_finite_is_given_up(bundle_of) -> None:
    bundle = bundle_of("unet")
    with pytest.raises(ValueError, match="did not stay finite, with 4 draws of random numbers after iteration 0; lower --lr"):
        distill(bundle, "student", SidConfig(iterations=4, batch=4, checkpoint_every=2, lr=float("inf")))
    assert "student" not in Bundle.load(bundle.root).manifest.components
    assert checkpoint_path(bundle.root, "student").is_dir()


def test_a_generator_begins_as_a_table_and_keeps_its_steps(bundle_of) -> None:
    """What is matched is the table's end: with the rate at 0, it is what the teacher makes with the table."""
    bundle = bundle_of("unet")
    plans = {"table": dpmpp_2m(karras(2, 0.002, 80.0)), "guided": dpmpp_2m(karras(2, 0.002, 80.0), Guidance(2.0))}
    with bundle.edit() as draft:
        for name, plan in plans.items():
            draft.manifest.plans[name] = PlanEntry.of(plan, denoiser="teacher", solver="a table")
    bundle, ends = Bundle.load(bundle.root), []
    loss = sid.sid_loss

    def seen(generated: Tensor, *others: Tensor, alpha: float) -> Tensor:
        ends.append(generated.detach())
        return loss(generated, *others, alpha=alpha)

    with patch.object(sid, "sid_loss", seen):
        done = distill(bundle, "student", SidConfig(iterations=1, batch=4, steps=2, plan="table", lr=0.0))
    assert np.array_equal(done.plan("student").b, plans["table"].b)
    draws = Draws(0, 0, 4)
    teacher = load_network(done, "teacher")
    for _ in range(2):  # F's turn, then G's
        labels, noise = draws.integers(3), draws.normal(4, 8, 8)
        with torch.no_grad():
            made = sample(lambda x, s, c=labels: teacher(x, s, c), float(plans["table"].sigmas[0]) * noise, plans["table"])
        if torch.allclose(made, ends[0], atol=BF16):
            break
        draws.normal(), draws.normal(4, 8, 8)  # the levels and the noise that F saw
    assert torch.allclose(made, ends[0], atol=BF16)
    trained = distill(Bundle.load(done.root), "trained", SidConfig(iterations=1, batch=4, steps=2, plan="table"))
    assert digest_of(trained, "trained") != digest_of(trained, "student")
    for choices, sentence in (
        ({"steps": 1, "plan": "table"}, "'table' has 2 steps"),
        ({"steps": 2, "plan": "guided"}, "guided"),
    ):
        with pytest.raises(ValueError, match=sentence):
            distill(done, "other", SidConfig(**choices))


def test_data_free_means_that_no_data_are_opened(digits: Bundle) -> None:
    with patch("fewstep.data.open_images", side_effect=AssertionError("an image was read")):
        done = distill(digits, "student", SidConfig(**CONFIG))
    assert record_of(done, "student").data is None


def test_what_cannot_be_distilled_gets_a_sentence(bundle_of) -> None:
    with pytest.raises(ValueError, match="made from arrays, which cannot be drawn at random"):
        distill(bundle_of("text"), "student", SidConfig())
    bundle = bundle_of("unet")
    signature = Signature(inputs=LABELS, output=ImageOutput(channels=1, height=4, width=4))
    other = Images("small ones", signature, np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="makes other samples than small ones holds"):
        distill(bundle, "student", SidConfig(), samples=other)
    for choices, sentence in (
        ({"steps": 5}, "take 1 to 4 steps, got 5"),
        ({"match": "first"}, "every output .uniform. or the last .final., got 'first'"),
        ({"warmup": 1.0}, "shares of a run lie in 0 .. 1"),
        ({"patience": -1}, "its patience is 0 or more"),
        ({"alpha": float("nan")}, "alpha is a finite number"),
        ({"lr": -1.0}, "a learning rate is 0 or more, got -1.0"),
        ({"lr": float("nan")}, "a learning rate is 0 or more, got nan"),
        ({"guidance": 2.0, "lo": 2.0, "hi": 1.0}, "guidance needs lo < hi"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SidConfig(**choices)


def test_curves_and_sheets_are_kept_beside_the_run(digits: Bundle, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tmp_path / "log"
    config = SidConfig(iterations=20, batch=4, checkpoint_every=10, validate_every=10)
    done = distill(digits, "student", config, validate=lambda _ema, _plan: 3.0, log=log)
    plain = distill(Bundle.load(done.root), "again", config, validate=lambda _ema, _plan: 3.0)
    assert digest_of(plain, "again") == digest_of(plain, "student")  # being watched changes nothing
    assert sorted(path.name for path in log.glob("*.png")) == ["student-000010.png", "student-000020.png"]
    events = EventAccumulator(str(log / "student")).Reload()
    for curve in ("fake_loss", "generator_loss", "metric"):
        found = events.Scalars(curve)
        assert [point.step for point in found] == [10, 20]
        assert all(np.isfinite(point.value) for point in found)
    assert [(image.step, image.width, image.height) for image in events.Images("samples")] == [(10, 280, 56), (20, 280, 56)]
    with pytest.raises(ValueError, match="is a file; choose another --log-to"):
        distill(Bundle.load(done.root), "third", config, log=tmp_path / "log/student-000010.png")


def test_images_of_rows_of_arrays_evaluate_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator makes its samples from the same rows: the labels of its images count them."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    rng, labels = np.random.default_rng(0), np.arange(80) % 4
    pixels = (labels[:, None, None, None] * 60 + rng.integers(0, 20, (80, 8, 8, 1))).astype(np.uint8)
    arrays = {"told": rng.standard_normal((4, 3)).astype(np.float32), "negative_told": np.zeros((1, 3), np.float32)}
    images = Images.of(pixels, labels)
    rows = replace(images, signature=Signature(inputs=inputs_of(arrays), output=images.signature.output))
    bundle = fewstep.train(tmp_path / "a.bundle", rows, arrays=arrays, iterations=2, batch=4)
    about = {"arrays": arrays, "steps": 1, "iterations": 2, "batch": 4, "validate_every": 1}
    record = fewstep.distill(bundle, "s", validate=images, **about).manifest.records.components["s"]
    assert record.validated

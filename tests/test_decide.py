"""What to ship: samplers evaluated side by side, the choice under limits, the page about it, and the searches before it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from browser import CHROMIUM, browser
from PIL import Image
from small_sampler import LABELS, PATH, TEXT, sampler_bundle
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Distilled, Searched
from fewstep.artifact.signature import Signature
from fewstep.calibration.configs import IntervalConfig
from fewstep.calibration.interval import calibrate_interval
from fewstep.data import images_like, open_images
from fewstep.evaluation import compare as comparing
from fewstep.evaluation.compare import CompareConfig, compare, make
from fewstep.evaluation.comparison import FILE, Candidate, Comparison, Evaluated, Limits, Spread, pick, read
from fewstep.evaluation.features import feature_network
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.evaluation.tau import best_tau
from fewstep.runtime import Generator
from fewstep.sampling.solvers import ddim


def evaluated(
    frechet: float, ms: float, calls: int = 4, *, std: float = 0.1, accuracy: float | None = 0.9, bright: float = 0.5
) -> Evaluated:
    scores = {"frechet": Spread(mean=frechet, std=std), "psnr_db": Spread(mean=20, std=0)}
    scores |= {f"pixels.{name}": Spread(mean=value, std=0.1) for name, value in {"contrast": 0.2, "bright": bright}.items()}
    if accuracy is not None:
        scores["accuracy"] = Spread(mean=accuracy, std=0.01)
    speed = {"p50_ms": ms, "p99_ms": 2 * ms, "samples_per_second": 1000 / ms}
    return Evaluated(graph="g", sha256="0", backend="cpu", precision="fp32", nfe=calls, scores=scores, **speed)


def chosen(limits: Limits, **candidates: Evaluated) -> str:
    return pick([Candidate(None, name, j) for name, j in candidates.items()], limits).plan


ROWS = {
    "slow": evaluated(1.0, 50, 35),
    "good": evaluated(1.1, 20, 10),
    "fast": evaluated(4.0, 5, 2),
    "poor": evaluated(9.0, 4, 1),
}


@pytest.mark.parametrize(
    ("limits", "plan"),
    [
        (Limits(distance=5.0), "fast"),  # good enough: the fastest
        (Limits(distance=4.05), "good"),  # its spread does not hold
        (Limits(calls=10), "good"),  # affordable: the best
        (Limits(calls=40), "good"),  # the best is within the spread, and slower
        (Limits(ms=10), "fast"),
        (Limits(distance=5.0, ms=4.5, accuracy=0.5), None),
        (Limits(accuracy=0.895), None),
        (Limits(accuracy=0.85), "poor"),
    ],
)
def test_the_choice_holds_every_limit(limits: Limits, plan: str | None) -> None:
    if plan is None:
        with pytest.raises(ValueError, match=r"none of 4 samplers holds the limits; nearest is \w+ \("):
            chosen(limits, **ROWS)
    else:
        assert chosen(limits, **ROWS) == plan


def test_a_sampler_that_burnt_out_is_not_chosen_however_small_its_distance() -> None:
    rows = ROWS | {"burnt": evaluated(0.1, 1, 1, bright=3.0)}
    assert rows["burnt"].farthest == ("bright", pytest.approx(3.0))
    assert chosen(Limits(calls=40), **rows) == "good"
    assert chosen(Limits(calls=40, pixels=4), **rows) == "burnt"
    with pytest.raises(ValueError, match=r"none of 1 samplers.*nearest is burnt \(pixels off in bright by 3 over 1.5\)"):
        chosen(Limits(calls=40), burnt=rows["burnt"])


def test_pick_says_what_it_left_out(digits: Bundle, folder: Path) -> None:
    found = compare(digits, CompareConfig(str(folder), seeds=2, seconds=0.01))
    best = min(found.plans, key=lambda name: found.plans[name].distance.mean)
    other = next(name for name in found.plans if name != best)
    found.plans[best].scores["pixels.bright"] = Spread(mean=9.0, std=0.5)
    found.plans[other].scores.update({name: Spread(mean=0.1, std=0) for name in found.plans[other].scores if "pixels" in name})
    with Bundle.load(digits.root).edit() as draft:
        draft.new(FILE).write_text(found.model_dump_json())
    done = fewstep("pick", digits.root, "--calls", 40)
    assert f"left out {best}: its pixels are off in bright by 9.00" in " ".join((done.stdout + done.stderr).split())
    assert Bundle.load(digits.root).manifest.default == other


def test_few_images_and_an_evaluator_that_has_not_learnt_are_said(digits: Bundle, folder: Path) -> None:
    said = fewstep("compare", digits.root, "--data", folder, "--plan", "sid1", "--seeds", 2, "--seconds", 0).stderr
    assert "images a set are few; below 200" in " ".join(said.split())
    assert f"{folder}: 150 images in 10 classes" in " ".join(said.split())
    found = read(Bundle.load(digits.root))
    enough = found.model_copy(update={"images": 200, "real": found.real | {"accuracy": 0.7}})
    assert enough.doubts() == []
    (doubt,) = enough.model_copy(update={"real": found.real | {"accuracy": 0.45}}).doubts()
    assert "knows the class of 45% of the real images" in doubt


def test_a_choice_needs_a_limit_that_is_a_number() -> None:
    with pytest.raises(ValueError, match="a choice needs a limit"):
        Limits()
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a limit is a number above 0"):
            Limits(ms=wrong)
    with pytest.raises(ValueError, match="know no classes"):
        chosen(Limits(accuracy=0.5), blind=evaluated(1.0, 1.0, accuracy=None))


def test_a_tau_must_beat_the_plain_loss_by_more_than_the_spread() -> None:
    plain = Spread(mean=10, std=1.0)
    assert best_tau({0.5: Spread(mean=8, std=1.0), 1.0: plain}) == 0.5
    assert best_tau({0.5: Spread(mean=9, std=1.0), 1.0: plain}) == 1.0
    assert best_tau({0.5: Spread(mean=12, std=0.1), 1.0: plain}) == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 digits as a folder of images, larger than a bundle of digits makes: quick to train a classifier on."""
    root = tmp_path_factory.mktemp("images")
    images = open_images("mnist5k")
    for label in range(10):
        (root / str(label)).mkdir()
        pixels, _ = images[np.flatnonzero(images.labels == label)[:15]]
        for i, image in enumerate(pixels):
            Image.fromarray(image[0]).resize((32, 32)).save(root / str(label) / f"{i}.png")
    return root


def test_a_comparison_says_what_the_runtime_makes(digits: Bundle, folder: Path) -> None:
    config = CompareConfig(str(folder), seeds=2, seconds=0.01)
    found = compare(digits, config, ["sid2", "sid1"])
    assert found.reference == "sid2"
    assert list(found.plans) == ["sid2", "sid1"]
    assert found.plans["sid2"].scores["psnr_db"] == Spread(mean=200, std=0)
    train, held_out = images_like(digits, str(folder)), images_like(digits, str(folder), "held-out")
    evaluator = ImageEvaluator(feature_network("classifier", train), held_out)
    assert found.images == evaluator.n == 30
    wanted = []
    for first in (0, 30):
        images = Generator.open(digits.root, plan="sid1")(labels=evaluator.labels, seeds=range(first, first + 30))
        wanted.append(evaluator.score(images.transpose(0, 3, 1, 2), evaluator.labels))
    for name in ("frechet", "recall", "accuracy", "pixels.bright", "pixels.detail"):
        values = [score.numbers()[name] for score in wanted]
        assert found.plans["sid1"].scores[name].mean == pytest.approx(np.mean(values), rel=1e-6)
        assert found.plans["sid1"].scores[name].std == pytest.approx(np.std(values, ddof=1), rel=1e-6)
    with patch.object(comparing, "make", side_effect=AssertionError("it is in the cache")):
        assert compare(Bundle.load(digits.root), config, ["sid2", "sid1"]).plans == found.plans
    bundle = Bundle.load(digits.root)
    bundle.verify()
    assert read(bundle).plans == found.plans
    with bundle.edit() as draft:
        draft.manifest.plans["sid1"].c[0] = 0.25
    assert list(read(Bundle.load(digits.root)).plans) == ["sid2"]  # sid1 is another sampler now


def test_what_cannot_be_compared_is_refused(digits: Bundle, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="were not compared yet"):
        read(digits)
    (tmp_path / "other").mkdir()
    for i in range(5):
        Image.new("RGB", (16, 16)).save(tmp_path / "other" / f"{i}.png")
    with pytest.raises(ValueError, match=r"makes images \(1, 28, 28\), .* has \(3, 28, 28\)"):
        compare(digits, CompareConfig(str(tmp_path / "other"), seeds=2))
    with pytest.raises(ValueError, match="a spread needs 2 or more sets"):
        CompareConfig(str(folder), seeds=1)
    with digits.edit() as draft:
        draft.new(FILE).write_text('{"data": 3}')
    with pytest.raises(ValueError, match="does not hold a comparison"):
        read(Bundle.load(digits.root))
    with Bundle.load(digits.root).edit() as draft:
        draft.manifest.graphs.clear()
        draft.manifest.engines.clear()
    with pytest.raises(ValueError, match="has a graph to evaluate"):
        compare(Bundle.load(digits.root), CompareConfig(str(folder), seeds=2))


def test_images_of_arrays_are_evaluated_by_their_rows_in_turn(tmp_path: Path) -> None:
    bundle, rng = sampler_bundle(tmp_path / "a.bundle", TEXT), np.random.default_rng(0)
    arrays = {"prompt_embeds": rng.random((3, 2, 3)), "negative_prompt_embeds": np.zeros((1, 2, 3))}
    generator = Generator(bundle, plan="one")
    rows = arrays["prompt_embeds"][[0, 1, 2, 0, 1]]
    expected = generator(seeds=range(10, 15), prompt_embeds=rows).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(make(generator, np.arange(5) % 3, 10, arrays), expected)
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for i in range(50):
            Image.fromarray(rng.integers(0, 255, (4, 4), np.uint8)).save(tmp_path / "images" / str(label) / f"{i}.png")
    config = CompareConfig(str(tmp_path / "images"), seeds=2, seconds=0.0)
    with pytest.raises(ValueError, match="which cannot be drawn at random; give the tensors negative_prompt_embeds"):
        compare(bundle, config, ["one"])
    found = compare(bundle, config, ["one"], arrays=arrays)
    assert "accuracy" not in found.plans["one"].scores  # no class was asked for
    assert found.inputs_sha256
    other = compare(Bundle.load(bundle.root), config, ["two"], arrays=arrays | {"prompt_embeds": rng.random((3, 2, 3))})
    assert set(other.plans) == {"two"}  # what was made from other prompts does not compare
    fewstep("report", bundle.root, "--out", tmp_path / "report.html")


def test_arrays_are_not_evaluated_by_images(tmp_path: Path, folder: Path) -> None:
    bundle = sampler_bundle(tmp_path / "a.bundle", LABELS, PATH)
    with pytest.raises(ValueError, match="evaluating by real images takes images, and this bundle gives arrays; name a bundle"):
        compare(bundle, CompareConfig(str(folder), seeds=2))


def test_arrays_are_evaluated_by_their_own_numbers(tmp_path: Path) -> None:
    bundle, rng = sampler_bundle(tmp_path / "a.bundle", LABELS, PATH), np.random.default_rng(0)
    labels = np.arange(150) % 3
    values = rng.normal(labels[:, None, None], 1.0, (150, 6, 2)).astype(np.float32)
    data, about = tmp_path / "paths.npz", {"axes": [{"name": "time", "unit": "s"}]}
    np.savez(data, values=values, labels=labels)
    about["columns"] = [{"name": column.name, "unit": column.unit} for column in PATH.columns]
    data.with_suffix(".json").write_text(json.dumps(about))
    longest = {"longest": lambda real, made: float(abs(np.abs(real).max() - np.abs(made).max()))}
    found = compare(bundle, CompareConfig(str(data), seeds=2, seconds=0.0, metrics=longest))
    assert (found.metric, found.features, found.images) == ("energy", "values", 30)
    assert found.real["energy"] < 0.5 < found.plans["one"].distance.mean  # its columns have other means
    assert found.plans[found.reference].scores["psnr_db"].mean == 200
    # x is 10 + 2 (class + noise) in the graph, class + noise in the data
    assert found.plans["one"].scores["own.longest"].mean == pytest.approx(10 + 2 * 5 - 5, abs=2.5)
    assert "sliced W." in fewstep("compare", bundle.root, "--data", data, "--seeds", 2, "--seconds", 0).stdout
    done = json.loads(fewstep("pick", bundle.root, "--distance", 1e6, "--json").stdout)
    assert done["ship"]["plan"] in {"one", "two"}
    out = tmp_path / "report.html"
    fewstep("report", bundle.root, "--out", out)
    page = Page(out.read_text("utf-8"))
    assert "sliced Wasserstein" in page.text
    assert "img" not in page.tags
    assert "leave --features out" in refused("compare", bundle.root, "--data", data, "--features", "classifier")


class Page(HTMLParser):
    """What a page loads, runs and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_from_evaluating_to_the_page(digits: Bundle, folder: Path, tmp_path: Path) -> None:
    """The verbs, one after the other; the page holds all it needs and shows names as text."""
    root = digits.root
    with digits.edit() as draft:
        draft.manifest.plans["sid1"].solver = "<script>alert(1)</script>"
    fewstep("interval", root, "--data", folder, "--steps", 3, "--guidance", 2, "--samples", 30, "--name", "guided3")
    fewstep("calibrate", root, "--method", "iia-ddim", "--steps", 3, "--samples", 8, "--name", "fit3")
    fewstep("export", root, "--plan", "guided3", "--plan", "fit3", "--precision", "fp32")
    done = fewstep("compare", root, "--data", folder, "--seeds", 2, "--seconds", 0.05, "--json")
    assert set(Comparison.model_validate_json(done.stdout).plans) == {"sid1", "sid2", "guided3", "fit3"}
    done = json.loads(fewstep("pick", root, "--calls", 1, "--price", 2, "--json").stdout)
    assert done["ship"]["plan"] == Bundle.load(root).manifest.default == "sid1"
    # One more plan costs one plan: the others stay.
    again = Comparison.model_validate_json(
        fewstep("compare", root, "--data", folder, "--seeds", 2, "--seconds", 0.05, "--plan", "sid1", "--json").stdout
    )
    assert again.plans == Comparison.model_validate_json((root / "comparison.json").read_text("utf-8")).plans
    assert set(again.plans) == {"sid1", "sid2", "guided3", "fit3"}
    assert "none of 4 samplers holds" in refused("pick", root, "--distance", 1e-6)
    assert "a choice needs a limit" in refused("pick", root)
    assert "ends with .html" in refused("report", root, "--out", tmp_path / "report.txt")
    out = tmp_path / "report.html"
    fewstep("report", root, "--out", out)
    text = out.read_text("utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<script>alert(1)</script>" in page.text
    assert all(name in page.text for name in ("sid1", "sid2", "guided3", "fit3", "real training samples"))
    assert page.tags.count("svg") == 2 + 2 + 1  # quality twice, the fit's levels and weights, the interval
    assert page.tags.count("img") == 1 + 4 + 3  # real ones; four samplers; the two-step generator came without its network
    assert f"held-out images of {folder}" in page.text
    assert "pixels off" in page.text
    if CHROMIUM:
        with browser() as tab:
            tab.open(out.as_uri())
            assert tab.complaints == []
            assert tab.run("[...document.images].every(i => i.naturalWidth > 0)")
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")
            assert tab.run("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 50)")


def test_a_search_for_an_interval_goes_on_where_it_stopped(digits: Bundle, folder: Path) -> None:
    arguments = ("interval", digits.root, "--data", folder, "--steps", 3, "--guidance", 2, "--samples", 30, "--json")
    with patch.object(ImageEvaluator, "distance", side_effect=[9.0, 3.0, 2.0, KeyboardInterrupt]):
        fewstep(*arguments, code=130)
    assert "ddim3_interval" not in Bundle.load(digits.root).manifest.plans
    with patch.object(ImageEvaluator, "distance", side_effect=[4.0, 1.0]) as left:
        result = json.loads(fewstep(*arguments).stdout)
    assert left.call_count == 2
    # No guidance; from each step on; the best of those, shortened.
    assert [trial["value"] for trial in result["trials"]] == [9.0, 3.0, 2.0, 4.0, 1.0]
    found = Bundle.load(digits.root)
    assert found.plan("ddim3_interval").guidance.tolist() == [1.0, 2.0, 1.0]
    # The bounds that are printed, rounded, guide the same steps.
    record = found.manifest.records.plans["ddim3_interval"]
    assert isinstance(record, Searched)
    lo, hi = (f"{record.guidance[bound]:.3g}" for bound in ("lo", "hi"))
    fewstep(
        "calibrate", digits.root, "--method", "iia-ddim", "--steps", 3, "--guidance", 2, "--lo", lo, "--hi", hi, "--samples", 4
    )
    assert Bundle.load(digits.root).plan("iia-ddim3").guidance.tolist() == [1.0, 2.0, 1.0]
    assert "3 steps take 3 calls without any guidance; allow more than 2" in refused(*arguments, "--calls", 2, "--replace")
    bundle = Bundle.load(digits.root)
    bundle.manifest.signature = Signature(output=bundle.manifest.output)
    with pytest.raises(ValueError, match="nothing to guide"):
        calibrate_interval(bundle, IntervalConfig(), ddim, None, name="guided")


def test_a_distillation_with_real_images_and_a_metric(digits: Bundle, folder: Path) -> None:
    arguments = ("distill", digits.root, "--name", "mine", "--iterations", 3, "--batch", 4, "--mode", "lsg", "--match", "final")
    fewstep(*arguments, "--steps", 2, "--data", folder, "--samples", 20, "--validate", folder, "--validate-every", 1)
    record = Bundle.load(digits.root).manifest.records.components["mine"]
    assert isinstance(record, Distilled)
    assert (record.data, record.samples) == (str(folder), 20)
    assert (record.settings["mode"], record.settings["match"]) == ("lsg", "final")
    assert [look.iteration for look in record.metrics] == [1, 2, 3]
    assert all(np.isfinite(look.value) for look in record.metrics)


def test_a_generator_takes_as_many_steps_as_the_table_it_begins_as(digits: Bundle) -> None:
    fewstep("distill", digits.root, "--plan", "table4", "--name", "mine", "--iterations", 1, "--batch", 2)
    assert Bundle.load(digits.root).plan("mine").rows == 4


def test_taus_are_trained_evaluated_and_kept(folder: Path, tmp_path: Path) -> None:
    arguments = ("tau", "--data", folder, "--value", 0.5, "--value", 1, "--iterations", 2, "--runs", 2, "--samples", 30)
    result = json.loads(fewstep(*arguments, "--steps", 2, "--json", cwd=tmp_path).stdout)
    assert set(result["distances"]) == {"0.5", "1"}
    assert sorted(p.name for p in (tmp_path / "taus").iterdir()) == [
        f"tau{tau}-seed{seed}.bundle" for tau in ("0.5", "1") for seed in (0, 1)
    ]
    with patch("fewstep.evaluation.tau.train_teacher", side_effect=AssertionError("they are there")):
        again = json.loads(fewstep(*arguments, "--steps", 2, "--json", cwd=tmp_path).stdout)
    assert again == result
    assert "compares taus with 1" in refused("tau", "--data", folder, "--value", 0.5, "--value", 0.9)
    assert "was trained with iterations 2, and this search has 1" in refused(*arguments, "--iterations", 1, cwd=tmp_path)

"""The demo's quick form: every station for real, with few steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.cli import demo
from fewstep.cli.demo import SAMPLERS, SHIPPED, full, run_demo, short, small
from fewstep.data import open_images
from fewstep.runtime import Generator
from fewstep.trainer.configs import TeacherConfig


def test_the_quick_demo_goes_the_whole_way(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = fewstep("demo", "--quick", "--out", "demo", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "demo/demo.json").read_text())
    compared = result["comparison"]["plans"]
    calls, samplers = {name: row["nfe"] for name, row in compared.items()}, small(short()).samplers
    assert calls == {name: demo.CALLS[name] for name in samplers}
    assert all(np.isfinite(row["scores"]["frechet"]["mean"]) for row in compared.values())
    assert result["comparison"]["images"] == 100
    for stage in range(1, 8):
        assert f"[{stage}/7]" in done.stderr
    assert set(result["stages"]) == set(demo._work(small(short())))
    path = tmp_path / "demo/digits.bundle"
    bundle, shipped = Bundle.load(path), Bundle.load(SHIPPED)
    bundle.verify()
    assert {g.plan for g in bundle.manifest.graphs.values()} == set(samplers)
    assert {e.graph for e in bundle.manifest.engines.values()} == set(small(short()).engines)
    assert all(set(e.layers) == {e.key.precision} for e in bundle.manifest.engines.values())
    for name in ("teacher", "sid1"):
        assert component_digest(bundle.manifest, name) == component_digest(shipped.manifest, name)
        assert bundle.manifest.records.components[name] == shipped.manifest.records.components[name]
    assert "sid2" in (path / "card.md").read_text()
    assert bundle.manifest.default == result["picked"]
    assert demo.CALLS[result["picked"]] <= 4
    images = Generator.open(SHIPPED, plan="sid1", backend="cpu")(labels=[0, 9], seeds=[0, 99])
    picture = np.asarray(Image.open(tmp_path / "demo/first.png"))
    assert (picture[:56, :56] == images[0, ..., 0].repeat(2, 0).repeat(2, 1)).all()
    assert (picture[-56:, -56:] == images[1, ..., 0].repeat(2, 0).repeat(2, 1)).all()
    assert Image.open(tmp_path / "demo/digits.png").size == (560, 560)
    assert Image.open(tmp_path / "demo/samplers.png").size == (560, 56 * len(samplers))
    assert "sid2" in (tmp_path / "demo/report.html").read_text()
    fewstep("check", "demo/digits.bundle", cwd=tmp_path)
    assert "holds a demo of other settings" in refused("demo", "--out", "demo", cwd=tmp_path)


def test_a_full_demo_trains_everything_anew(tmp_path: Path) -> None:
    config = small(full())
    assert config.teacher
    assert config.one_step
    assert set(full().samplers) == set(SAMPLERS) == set(demo.CALLS)
    demo._teacher(tmp_path / "a.bundle", open_images("mnist5k").about(100), TeacherConfig(iterations=2))
    bundle = Bundle.load(tmp_path / "a.bundle")
    assert set(bundle.manifest.components) == {"teacher"}
    assert component_digest(bundle.manifest, "teacher") != component_digest(Bundle.load(SHIPPED).manifest, "teacher")


def test_what_is_left_is_what_the_stages_that_are_done_make_likely(capsys: pytest.CaptureFixture[str]) -> None:
    stages = demo._Stages({"a": 100, "b": 300, "c": 600})
    stages.pace = 0.5  # seconds an update, as measured before the first stage
    stages.next("a", "first")
    stages.start -= 10  # it took ten seconds, so an update takes a tenth of one
    stages.next("b", "second")
    stages.next("c", "third")  # nothing was left of the second, which says nothing of the pace
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [re.findall(r"about (\d+:\d\d) left", line) for line in lines] == [["8:20"], ["1:30"], ["1:00"]]


def test_without_the_shipped_teacher_one_is_trained_or_the_demo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "none.bundle")
    with pytest.raises(ValueError, match="which no wheel holds; train one first with --full"):
        run_demo(tmp_path / "demo", short())
    assert list(tmp_path.iterdir()) == []

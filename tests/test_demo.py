"""The demo's quick form: every station for real, with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import fewstep, refused

from fewstep.bundle import Bundle
from fewstep.demo import SAMPLERS, small


def test_the_quick_demo_goes_the_whole_way(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = fewstep("demo", "--quick", "--out", "demo", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "demo/demo.json").read_text())
    assert set(result["samplers"]) == set(SAMPLERS)
    calls = {name: s["nfe"] for name, s in result["samplers"].items()}
    assert (calls["heun18"], calls["dpmpp4"], calls["table4"], calls["sid2"], calls["sid1"]) == (35, 4, 4, 2, 1)
    assert calls["ddim10"] < calls["ddim10_w2_interval"] < calls["ddim10_w2"] == 20
    assert all(np.isfinite(s["frechet"]) and s["n"] == 100 for s in result["samplers"].values())
    for stage in range(1, 9):
        assert f"[{stage}/8]" in done.stderr
    assert "left in all" in done.stderr
    bundle = Bundle.load(tmp_path / "demo/digits.bundle")
    bundle.verify()
    assert {g.plan for g in bundle.manifest.graphs.values()} == set(SAMPLERS)
    assert {e.graph for e in bundle.manifest.engines.values()} == set(small().engines)
    assert all(set(e.layers) == {e.key.precision} for e in bundle.manifest.engines.values())
    assert Image.open(tmp_path / "demo/digits.png").size == (560, 560)
    fewstep("check", "demo/digits.bundle", cwd=tmp_path)
    assert "holds a demo of other settings" in refused("demo", "--out", "demo", cwd=tmp_path)

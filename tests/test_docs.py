"""Code in the documentation runs as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from diffusers import UNet2DConditionModel

from fewstep.bundle import Bundle
from fewstep.data import Images
from fewstep.denoiser import load_network
from fewstep.trainer.teacher import TeacherConfig, train_teacher


def test_the_page_on_exporting_makes_a_bundle_of_ones_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text("utf-8"), flags=re.DOTALL)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=1024,
        attention_head_dim=4,
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/export.md", "exec"), {"unet": unet})
    bundle = Bundle.load("mine.bundle")
    bundle.verify()
    assert bundle.plan("dpmpp8").rows == 8
    assert load_network(bundle, "teacher").parametrisation.kind == "v"


def test_the_page_on_training_trains_and_distils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    code = code.replace("steps=6000", "steps=1, batch=2").replace("steps=1))", "steps=1, iterations=1, batch=2))")
    pixels, labels = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3), np.uint8), np.arange(50) % 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/training.md", "exec"), {"pixels": pixels, "labels": labels})
    assert Bundle.load("photos.bundle").manifest.default == "sid1"
    (config,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    choice = TeacherConfig(steps=1, batch=2, patch=1, network=json.loads(config))
    bundle = train_teacher(Path("own.bundle"), Images.of(pixels, labels), choice)
    assert load_network(bundle, "teacher").patch == 1


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

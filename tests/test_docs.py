"""Code in the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT
from diffusers import UNet2DConditionModel

from fewstep.bundle import Bundle
from fewstep.denoiser import load_network


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


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

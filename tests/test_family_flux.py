"""FLUX: a tiny pipeline of diffusers with random weights is imported, proven against FluxPipeline itself, exported and run."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from pipelines import vae

import fewstep
from fewstep.exporter.parity import check_graphs

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def tiny(path: Path, *, embeds: bool) -> Path:
    """dev embeds its guidance and shifts by the number of tokens; schnell neither."""
    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=embeds,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC if embeds else {"shift": 1.0})
    parts = {"transformer": net, "scheduler": scheduler, "vae": vae()}
    index = {"_class_name": "FluxPipeline", "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        part.save_pretrained(path / name)
        index[name] = ["diffusers", type(part).__name__]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("embeds", [True, False], ids=["dev", "schnell"])
def test_flux_ends_where_its_own_pipeline_ends(tmp_path: Path, embeds: bool) -> None:
    bundle = fewstep.import_pipeline(tiny(tmp_path / "flux", embeds=embeds), tmp_path / "f.bundle", tokens=7, resolution=16)
    record = bundle.manifest.records.components["teacher"]
    assert record.kind == "imported"
    assert record.proof["against"] == "FluxPipeline"
    assert record.proof["max_error"] < 1e-5 * record.proof["scale"]
    entry = bundle.manifest.denoisers["teacher"]
    assert (entry.patch, entry.constants) == (2, {"guidance_scale": 3.5} if embeds else {})
    assert bundle.plan(str(bundle.manifest.default)).nfe == 28
    bundle = fewstep.export(bundle)
    assert all(parity.ok for parity in check_graphs(bundle))
    rng = np.random.default_rng(0)
    given = {"prompt_embeds": rng.standard_normal((2, 7, 24)), "pooled_prompt_embeds": rng.standard_normal((2, 20))}
    assert fewstep.Generator(bundle)(seeds=[0, 1], **given).shape == (2, 16, 16, 3)


def test_sizes_and_tokens_are_asked_for(tmp_path: Path) -> None:
    path = tiny(tmp_path / "flux", embeds=True)
    with pytest.raises(ValueError, match="say which with --resolution"):
        fewstep.import_pipeline(path, tmp_path / "f.bundle", tokens=7)
    with pytest.raises(ValueError, match="say so with --tokens"):
        fewstep.import_pipeline(path, tmp_path / "f.bundle", resolution=16)
    with pytest.raises(ValueError, match="divide"):
        fewstep.import_pipeline(path, tmp_path / "f.bundle", tokens=7, resolution=18)
    assert not (tmp_path / "f.bundle").exists()

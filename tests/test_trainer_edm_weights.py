"""State dicts of EDM's ADM networks: the numbers that EDM's own code makes of them, and files that are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.records import Imported
from fewstep.artifact.signature import LabelInput
from fewstep.models.denoiser import load_network
from fewstep.models.edm_weights import load_edm_weights

# Shapes of a small network, and what EDM's code (NVlabs/edm, EDMPrecond of a DhariwalUNet) makes of the numbers drawn below.
ADM = json.loads((Path(__file__).parent / "adm_of_edm.json").read_text("utf-8"))


def drawn() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights, and states with a standard deviation of 1, (2, 3, 8, 8)."""
    rng = np.random.default_rng(0)
    weights = {key: torch.tensor(rng.standard_normal(shape, np.float32) * 0.05) for key, shape in ADM["shapes"].items()}
    return weights, torch.tensor(rng.standard_normal((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_edms_own_numbers(suffix: str, tmp_path: Path) -> None:
    weights, x = drawn()
    path = tmp_path / f"adm{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    fewstep("import", path, "--out", "adm.bundle", cwd=tmp_path)
    bundle = Bundle.load(tmp_path / "adm.bundle")
    assert bundle.manifest.signature.inputs == (LabelInput(classes=4, null=False),)
    record = bundle.manifest.records.components["teacher"]
    assert isinstance(record, Imported)
    assert record.proof["max_error"] < 1e-3
    sigma = torch.tensor(ADM["sigma"])
    with torch.no_grad():
        found = load_network(bundle, "teacher")(x * sigma.reshape(-1, 1, 1, 1), sigma, torch.tensor(ADM["labels"]))
    np.testing.assert_allclose(found[:, :, ::4, ::4].flatten().numpy(), ADM["denoised"], atol=1e-6)


def test_an_unconditional_network_has_no_inputs(tmp_path: Path) -> None:
    weights, _ = drawn()
    del weights["model.map_label.weight"]
    save_file(weights, tmp_path / "adm.safetensors")
    denoiser, inputs = load_edm_weights(tmp_path / "adm.safetensors")
    assert inputs == ()
    assert denoiser.parametrisation.time_scale == 0.25  # type: ignore[union-attr]


class Trap:
    """What reading as code would set off."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


def test_what_is_no_state_dict_of_an_adm_network(tmp_path: Path) -> None:
    weights, _ = drawn()
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Trap()}))
    assert "which reading would execute" in refused("import", "edm.pkl", cwd=tmp_path)
    torch.save({"step": 3, "ema": weights}, tmp_path / "nested.pt")
    assert "is not a state dict" in refused("import", "nested.pt", cwd=tmp_path)
    save_file({**weights, "model.enc.8x8_block0.extra.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({k: v for k, v in weights.items() if "in1" not in k}, tmp_path / "fewer.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("more", "fewer", "other"):
        assert "does not hold the weights of an ADM network" in refused("import", f"{name}.safetensors", cwd=tmp_path)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "more.safetensors").read_bytes()[:1000])
    assert "could not be read" in refused("import", "cut.safetensors", cwd=tmp_path)
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob("*.bundle"))

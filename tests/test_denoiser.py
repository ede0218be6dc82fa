"""D(x, sigma, label) around a diffusers network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature, State
from fewstep.models.denoiser import Denoiser, load_network, save_network, unet

IMAGE, LABELS = ImageOutput(channels=3, height=8, width=8), (LabelInput(classes=3),)
SIGNATURE = Signature(inputs=LABELS, output=IMAGE)


def small_unet(patch: int = 1) -> Denoiser:
    torch.manual_seed(0)
    return unet(IMAGE.state, LABELS, channels=(8, 16), layers=1, attention=True, patch=patch).eval()


def test_the_dtype_of_the_estimate_is_that_of_the_state_whatever_that_of_the_level_and_the_weights() -> None:
    denoiser, x, label = small_unet(), torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    with torch.no_grad():
        exact = denoiser(x, 1.3, label)
        found = denoiser(x, torch.tensor([1.3, 1.3], dtype=torch.float64), label)
        torch.testing.assert_close(found, exact)
        denoiser.net.half()
        rounded = denoiser(x, 1.3, label)
    assert found.dtype == rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 1e-2


def test_one_level_for_all_equals_a_level_each() -> None:
    denoiser, x, label = small_unet(), torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, 1.3, label), denoiser(x, torch.tensor([1.3, 1.3]), label))


def test_without_noise_an_image_is_its_own_estimate() -> None:
    denoiser, x = small_unet(), torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        assert float((denoiser(x, 1e-4, torch.tensor([0, 1])) - x).abs().max()) < 1e-2


def test_the_label_and_the_level_matter() -> None:
    denoiser, x = small_unet(patch=2), torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = denoiser(x, 1.0, torch.tensor([0, 3]))
        assert not torch.allclose(first, second)
        assert not torch.allclose(first, denoiser(x, 2.0, torch.tensor([0, 3]))[0])


@pytest.mark.parametrize("patch", [1, 2])
def test_a_network_comes_back_from_a_bundle_bit_for_bit(tmp_path: Path, patch: int) -> None:
    denoiser = small_unet(patch)
    with Draft.create(tmp_path / "a.bundle", SIGNATURE) as draft:
        save_network(draft, "teacher", denoiser)
    loaded = load_network(Bundle.load(tmp_path / "a.bundle"), "teacher")
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.equal(denoiser(x, 0.7, label), loaded(x, 0.7, label))
    with Draft.create(tmp_path / "b.bundle", SIGNATURE) as draft:
        save_network(draft, "student", loaded)
    again = load_network(Bundle.load(tmp_path / "b.bundle"), "student")
    assert loaded.architecture == again.architecture
    assert str(tmp_path) not in (tmp_path / "b.bundle/components/student/config.json").read_text()
    assert loaded.architecture != small_unet(3 - patch).architecture


def test_a_network_of_another_class_is_refused(tmp_path: Path) -> None:
    with Draft.create(tmp_path / "a.bundle", SIGNATURE) as draft:
        save_network(draft, "teacher", small_unet())
        path = draft.root / "components/teacher/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "os.system"}))
    with pytest.raises(ValueError, match=r"is a os.system; this version of fewstep drives DiTTransformer2DModel, "):
        load_network(Bundle.load(tmp_path / "a.bundle"), "teacher")


def test_images_that_do_not_divide_are_refused() -> None:
    state = State(channels=1, axes=(10, 10))
    with pytest.raises(ValueError, match=r"sides of 10x10 do not divide by 4 \(patch 2, 2 levels\)"):
        unet(state, LABELS, channels=(8, 16), layers=1, attention=False, patch=2)


def test_states_without_two_axes_are_not_for_a_unet() -> None:
    with pytest.raises(ValueError, match="a U-Net of its own walks states with two axes, this one has 1"):
        unet(State(channels=2, axes=(8,)), LABELS, channels=(8, 16), layers=1, attention=False, patch=1)

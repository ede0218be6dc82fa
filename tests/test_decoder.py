"""Latent models: the decoder half makes the images of the whole autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from small import LABELS, given, small

from fewstep.artifact.bundle import MANIFEST, Bundle, Draft
from fewstep.artifact.signature import ArrayOutput, Axis, Column, ImageOutput, Output, Signature
from fewstep.models.decoder import load_decoder, save_decoder
from fewstep.models.denoiser import load_network, save_network

IMAGE = ImageOutput(channels=3, height=16, width=16)
LATENT = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def _autoencoder(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    if kind == "tiny":
        channels, blocks = (8, 8), {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        return AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels, **blocks, **settings)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    quant = {"use_post_quant_conv": kind == "kl", "use_quant_conv": kind == "kl"}
    settings = {"scaling_factor": 1.5, "shift_factor": 0.06} | settings
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **blocks, **quant, **settings)


def _bundle(path: Path, autoencoder: Any, output: Output = IMAGE) -> Bundle:
    with Draft.create(path / "latent.bundle", Signature(inputs=LABELS, output=output)) as draft:
        save_decoder(draft, autoencoder)
    return Bundle.load(path / "latent.bundle")


@pytest.mark.parametrize("kind", ["kl", "kl without convolution", "tiny"])
def test_the_decoder_makes_the_images_of_the_autoencoder_without_its_encoder(kind: str, tmp_path: Path) -> None:
    autoencoder = _autoencoder(kind).eval()
    bundle = _bundle(tmp_path, autoencoder)
    decoder, config = load_decoder(bundle), autoencoder.config
    with torch.no_grad():
        expected = autoencoder.decode(LATENT / config.scaling_factor + (config.get("shift_factor") or 0.0)).sample
        assert torch.equal(decoder(LATENT), expected)
        assert expected.shape == (2, *IMAGE.shape)
        assert float((decoder.half()(LATENT) - expected).abs().max()) < 1e-2
        assert decoder(LATENT).dtype == torch.float32
    assert not any("encoder" in name and "decoder" not in name for name in decoder.state_dict())
    assert bundle.manifest.state.shape == LATENT.shape[1:]


def test_a_tiny_decoders_images_run_from_minus_one_to_one(tmp_path: Path) -> None:
    """It works in [0, 1] inside: black there is -1 here."""
    autoencoder = _autoencoder("tiny")
    last = autoencoder.decoder.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    assert (load_decoder(_bundle(tmp_path, autoencoder))(LATENT) == -1).all()


def test_networks_of_a_latent_model_fit_the_latent(tmp_path: Path) -> None:
    denoiser, told = small("dit")
    with Draft.create(tmp_path / "latent.bundle", Signature(inputs=told, output=IMAGE)) as draft:
        with pytest.raises(ValueError, match="in_channels 4, the bundle needs 3"):
            save_network(draft, "teacher", denoiser)
        save_decoder(draft, _autoencoder("tiny"))
        save_network(draft, "teacher", denoiser)
    bundle = Bundle.load(tmp_path / "latent.bundle")
    with torch.no_grad():
        image = load_decoder(bundle)(load_network(bundle, "teacher")(LATENT, 0.5, *given(told, 2)))
    assert image.shape == (2, *IMAGE.shape)


@pytest.mark.parametrize(
    ("kind", "settings", "image", "message"),
    [
        ("kl", {"latents_mean": [0.0] * 4}, {}, "normalises latents by channel"),
        ("kl", {"out_channels": 1}, {}, r"makes \(1, 16, 16\) \(C, H, W\) images from 4 channels"),
        ("kl", {}, {"height": 17}, "needs image sides that divide by 2, got 17x16"),
        ("tiny", {}, {"low": 0.0}, r"makes images in \[-1, 1\]; let the output be one"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(
    kind: str, settings: dict[str, Any], image: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        _bundle(tmp_path, _autoencoder(kind, **settings), IMAGE.model_copy(update=image))


def test_a_decoder_makes_no_arrays(tmp_path: Path) -> None:
    values = ArrayOutput(axes=(Axis(name="time", size=8),), columns=(Column(name="x"),))
    with pytest.raises(ValueError, match="a AutoencoderTiny makes images, this bundle gives arrays"):
        _bundle(tmp_path, _autoencoder("tiny"), values)


def test_other_autoencoders_and_bundles_without_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="the decoder is a VQModel; this version of fewstep drives AutoencoderKL, AutoencoderTiny"
    ):
        _bundle(tmp_path, VQModel(norm_num_groups=4, block_out_channels=(8,)))
    with Draft.create(tmp_path / "pixels.bundle", Signature(inputs=LABELS, output=IMAGE)):
        pass
    with pytest.raises(ValueError, match=r"pixels.bundle has no decoder: its samplers walk on what it gives"):
        load_decoder(Bundle.load(tmp_path / "pixels.bundle"))


@pytest.mark.parametrize(
    ("state", "entry", "message"),
    [
        ({"channels": 5}, {}, "from 4 channels, the bundle needs .* from 5 by AutoencoderTiny"),
        ({"axes": [4, 8]}, {}, r"makes \(3, 8, 16\)"),
        ({"axes": [8]}, {}, r"makes \(3, 16\)"),
        ({}, {"kind": "AutoencoderKL"}, "this AutoencoderTiny makes .* by AutoencoderKL"),
        ({}, {"directory": None}, "shipped without the decoder 'decoder'"),
        ({}, {"kind": "os.system"}, "this AutoencoderTiny makes .* by os.system"),
        ({}, {"role": "encoder"}, "not a valid manifest"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    state: dict[str, Any], entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    manifest = _bundle(tmp_path, _autoencoder("tiny")).root / MANIFEST
    raw = json.loads(manifest.read_text())
    raw["state"] |= state
    raw["components"]["decoder"] |= entry
    manifest.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        load_decoder(Bundle.load(manifest.parent))


def test_a_truncated_decoder_is_refused(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path, _autoencoder("tiny"))
    weights = bundle.root / "components/decoder/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        load_decoder(bundle)

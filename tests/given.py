"""What a reader of the pages has before the first command, made small: images, checkpoints, bundles, files of configuration."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from conftest import ROOT
from PIL import Image

RNG = np.random.default_rng(0)
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
TINY = {"_class_name": "UNet2DModel", "layers_per_block": 1, "block_out_channels": [8, 16], "norm_num_groups": 4}
TINY |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "attention_head_dim": 8}


def few(path: Path) -> None:
    """15 real digits of each class."""
    from fewstep.data import open_images

    images = open_images("mnist5k")
    for label in range(10):
        (path / str(label)).mkdir(parents=True)
        for i, pixels in enumerate(images[np.flatnonzero(images.labels == label)[:15]][0]):
            Image.fromarray(pixels[0]).save(path / str(label) / f"{i}.png")


def photos(path: Path) -> None:
    """Five color images in each of ten classes, 40 x 32."""
    for label in range(10):
        (path / f"class{label}").mkdir(parents=True)
        for i in range(5):
            Image.fromarray(RNG.integers(0, 255, (32, 40, 3), np.uint8)).save(path / f"class{label}" / f"{i}.png")


def bucket(path: Path) -> None:
    """Such photos in a parquet file, as `datasets` writes it."""
    import datasets

    path.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [Image.fromarray(RNG.integers(0, 255, (32, 40, 3), np.uint8)) for _ in range(50)]
    made = {"image": images, "label": [i % 10 for i in range(50)]}
    datasets.Dataset.from_dict(made, features=features).to_parquet(path / "a.parquet", batch_size=10)


def config(path: Path, **more: Any) -> None:
    path.write_text(json.dumps(TINY | more))


def prompts_network(path: Path) -> None:
    from small import small

    network = {key: value for key, value in small("text").denoiser.net.config.items() if not key.startswith("_")}
    network |= {"in_channels": 3, "out_channels": 3, "sample_size": 32, "_class_name": "UNet2DConditionModel"}
    path.write_text(json.dumps(network))


def prompts(path: Path) -> None:
    """A prompt for each class of the photos."""
    import torch
    from safetensors.torch import save_file
    from small import TEXT

    (embeds,) = (each.tensor for each in TEXT)
    negative = torch.zeros(1, *embeds.shape)
    save_file({embeds.name: torch.randn(10, *embeds.shape), f"negative_{embeds.name}": negative}, path)


def autoencoder(path: Path) -> None:
    """Latents of 4 channels and a quarter of the side."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, **blocks).save_pretrained(path)


def pipeline(path: Path) -> None:
    """A pipeline of diffusers."""
    from diffusers import DDIMPipeline, DDIMScheduler
    from small import small

    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", beta_schedule="scaled_linear", beta_end=0.002)
    DDIMPipeline(small("plain").denoiser.net, scheduler).save_pretrained(path)


def flux(path: Path) -> None:
    """A pipeline of FLUX.1 dev."""
    from test_family_flux import tiny

    tiny(path, embeds=True)


def auraflow(path: Path) -> None:
    """A pipeline of AuraFlow, without its text encoder."""
    from diffusers import AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    small = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": 12}
    small |= {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "pos_embed_max_size": 16}
    AuraFlowTransformer2DModel(**small).save_pretrained(path / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=1.73).save_pretrained(path / "scheduler")
    parts = {"transformer": "AuraFlowTransformer2DModel", "scheduler": "FlowMatchEulerDiscreteScheduler"}
    index = {"_class_name": "AuraFlowPipeline", **{part: ["diffusers", name] for part, name in parts.items()}}
    (path / "model_index.json").write_text(json.dumps(index))


def pushes(path: Path) -> None:
    """Ways and the goals that were seen, with their names and units."""
    import mixture

    mixture.write(path, 300, seed=0)


def seen(path: Path) -> None:
    """Goals to make ways to."""
    np.savez(path, observation=RNG.uniform(-1, 1, (10, 2)).astype(np.float32))


def actions(path: Path) -> None:
    """A bundle that makes ways from goals: the best denoiser there is."""
    import mixture

    import fewstep

    columns = (fewstep.Column(name="x", unit="cm", std=3.0), fewstep.Column(name="y", unit="m", mean=20.0, std=0.4))
    output = fewstep.ArrayOutput(axes=(fewstep.Axis(name="time", size=mixture.STEPS, unit="0.1 s"),), columns=columns)
    edm = fewstep.Edm(sigma_data=1.0)
    plans = {"dpmpp6": fewstep.solvers.dpmpp_2m(edm.grid(6))}
    about = {"state": mixture.WALKED, "parametrisation": edm, "inputs": mixture.INPUTS, "output": output}
    fewstep.export(mixture.Exact(output, edm), path, plans=plans, **about)


class Ema:
    """What NVIDIA's pickles hold, as far as a page uses it."""

    def state_dict(self) -> dict[str, Any]:
        from test_trainer_edm_weights import drawn

        return drawn()[0]


def edm(path: Path) -> None:
    path.write_bytes(pickle.dumps({"ema": Ema()}))


def onnx_runtime(path: Path) -> None:
    """An unpacked release of ONNX Runtime: its headers, and the library of the Python package."""
    assert LIBRARY
    (path / "lib").mkdir(parents=True)
    (path / "include").symlink_to(Path(os.environ["FEWSTEP_ORT_INCLUDE"]).resolve())
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (path / "lib" / name).symlink_to(LIBRARY)


def copy_of(source: Path | str) -> Callable[[Path], None]:
    """What lies there; a plain name is one beside it."""
    return lambda path: (shutil.copytree(path.parent / source, path), None)[1]


def examples(path: Path) -> None:
    shutil.copytree(ROOT / "examples", path, ignore=shutil.ignore_patterns("node_modules"))


def shown(page: str) -> Callable[[Path], None]:
    """The one JSON that a page shows."""
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
    return lambda path: (path.write_text(text), None)[1]


def text_unet() -> Any:
    """A network of Stable Diffusion's kind."""
    from diffusers import UNet2DConditionModel

    blocks = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DConditionModel(
        sample_size=64, layers_per_block=1, norm_num_groups=4, cross_attention_dim=1024, attention_head_dim=4, **blocks
    )

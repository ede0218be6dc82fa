"""Checkpoints as they lie on a disk: what is read, what is asked for, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DConditionModel, UNet2DModel
from pipelines import CASES, STABLE, Tiny, network, save
from safetensors.torch import load_file, save_file
from single_file import save_single
from test_cli import fewstep, refused
from test_trainer_importer import imported_of

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import LabelInput
from fewstep.models.denoiser import load_network
from fewstep.models.importer import ImportOptions, import_teacher

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def ddim(tmp_path: Path) -> Path:
    """A pipeline of pixels."""
    return save(tmp_path / "ddim", Tiny("DDIMPipeline", "plain", DDIMScheduler(), latent=False))


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Bundle]:
    def taken(source: Path, **options: Any) -> Bundle:
        out = tmp_path / f"{len(list(tmp_path.glob('*.bundle')))}.bundle"
        return import_teacher(source, out, ImportOptions(**{"steps": 2, **options}))[0]

    return taken


def change(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def same(bundle: Bundle, net: Any) -> None:
    """Whether a bundle's teacher has a network's weights, bit for bit."""
    found = load_network(bundle, "teacher").net.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_a_flat_repository_has_its_network_beside_the_index(ddim: Path, take: Callable[..., Bundle]) -> None:
    """As the first DDPM checkpoints were published."""
    for part, files in (("unet", ("config.json", WEIGHTS)), ("scheduler", ("scheduler_config.json",))):
        for name in files:
            (ddim / part / name).rename(ddim / name)
        shutil.rmtree(ddim / part)
    bundle = take(ddim)
    same(bundle, network("plain"))
    assert imported_of(bundle).proof["against"] == "DDIMPipeline"


def test_a_network_alone_says_how_to_add_a_scheduler(ddim: Path, tmp_path: Path, take: Callable[..., Bundle]) -> None:
    network("plain").save_pretrained(tmp_path / "unet")
    said = refused("import", "unet", cwd=tmp_path)
    assert "a network alone does not say what it estimates" in said
    assert "DDIMScheduler(prediction_type='epsilon').save_pretrained('unet')" in said
    DDIMScheduler(prediction_type="epsilon").save_pretrained(tmp_path / "unet")
    same(take(tmp_path / "unet"), network("plain"))


def test_the_published_dit_under_the_name_of_an_older_class(tmp_path: Path, take: Callable[..., Bundle]) -> None:
    """Keys as facebook/DiT-XL-2-256 has them."""
    pipeline = save(tmp_path / "dit", CASES["dit"]())
    older = {
        "only_cross_attention": False,
        "cross_attention_dim": None,
        "num_vector_embeds": None,
        "use_linear_projection": False,
    }
    change(pipeline / "transformer" / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero", **older)
    change(
        pipeline / "model_index.json",
        transformer=["diffusers", "Transformer2DModel"],
        id2label={str(i): f"class {i}" for i in range(1000)},
    )
    bundle = take(pipeline)
    same(bundle, network("dit"))
    names = tuple(f"class {i}" for i in range(1000))
    assert bundle.manifest.signature.inputs == (LabelInput(classes=1000, names=names),)
    change(pipeline / "transformer" / "config.json", cross_attention_dim=16)
    with pytest.raises(ValueError, match="sets cross_attention_dim to 16, which DiTTransformer2DModel of diffusers"):
        take(pipeline)
    change(pipeline / "transformer" / "config.json", norm_type="layer_norm")
    with pytest.raises(ValueError, match="the network is a Transformer2DModel; this version"):
        take(pipeline)


def test_a_checkpoint_in_half_precision_alone_is_read_and_says_so(tmp_path: Path, take: Callable[..., Bundle]) -> None:
    pipeline = save(tmp_path / "dit", CASES["dit"]())
    for part in ("transformer", "vae"):
        path = pipeline / part / WEIGHTS
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
        save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
        path.unlink()
    bundle = take(pipeline)
    net = network("dit").half().float()
    same(bundle, net)
    (note,) = [note for note in imported_of(bundle).notes if note.startswith("transformer: ")]
    assert "tensors in F16" in note
    assert note.endswith("read as fp32")
    shutil.copy(
        pipeline / "transformer" / "diffusion_pytorch_model.fp16.safetensors",
        pipeline / "transformer" / "diffusion_pytorch_model.bf16.safetensors",
    )
    with pytest.raises(ValueError, match="holds the variants bf16, fp16; choose one with --variant"):
        take(pipeline)
    with pytest.raises(ValueError, match="vae has no variant bf16; it holds fp16"):
        take(pipeline, variant="bf16")
    take(pipeline, variant="fp16")


def test_weights_in_shards(tmp_path: Path, take: Callable[..., Bundle]) -> None:
    pipeline = save(tmp_path / "dit", CASES["dit"]())
    (pipeline / "transformer" / WEIGHTS).unlink()
    network("dit").save_pretrained(pipeline / "transformer", max_shard_size="20KB")
    assert len(list((pipeline / "transformer").glob("*.safetensors"))) > 2
    same(take(pipeline), network("dit"))


def test_pickles_are_refused_with_how_to_convert_them_and_the_command_does(ddim: Path, take: Callable[..., Bundle]) -> None:
    (ddim / "unet" / WEIGHTS).unlink()
    network("plain").save_pretrained(ddim / "unet", safe_serialization=False)
    with pytest.raises(ValueError, match=r"holds pickles \(.bin\)") as refusal:
        take(ddim)
    command = str(refusal.value).split('python -c "')[1].rstrip('"')
    assert not (ddim / "unet" / WEIGHTS).exists()
    exec(command)  # the test's own sentence
    same(take(ddim), network("plain"))


def test_a_single_file_as_its_authors_published_it(tmp_path: Path, take: Callable[..., Bundle]) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=2, latent_channels=4, **levels)
    index = {"_class_name": "StableDiffusionPipeline"}
    for name, part in {"unet": unet, "vae": vae, "scheduler": PNDMScheduler(skip_prk_steps=True, **STABLE)}.items():
        part.save_config(tmp_path / "configs" / name)
        index |= {name: ["diffusers", type(part).__name__]}
    (tmp_path / "configs" / "model_index.json").write_text(json.dumps(index))
    file = save_single(tmp_path / "model.safetensors", unet, vae)
    with pytest.raises(ValueError, match="holds weights and no configurations; give --config"):
        take(file, tokens=5)
    bundle = take(file, tokens=5, config=tmp_path / "configs")
    same(bundle, unet)
    decoder = load_file(bundle.component("decoder") / WEIGHTS)
    for name, tensor in vae.decoder.state_dict().items():
        assert torch.equal(decoder[f"decoder.{name}"], tensor), name
    tensors = load_file(file)
    tensors.pop("model.diffusion_model.out.2.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"conv_out\.weight"):
        take(file, tokens=5, config=tmp_path / "configs")


def test_tensors_that_are_missing_or_too_many_are_named(ddim: Path, take: Callable[..., Bundle]) -> None:
    path = ddim / "unet" / WEIGHTS
    weights = load_file(path)
    save_file({name: tensor for name, tensor in weights.items() if name != "conv_out.bias"}, path)
    with pytest.raises(ValueError, match=r"unet lack conv_out.bias, by the UNet2DModel"):
        take(ddim)
    save_file({**weights, "ema.decay": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"unet have besides ema.decay, by the UNet2DModel"):
        take(ddim)
    save_file({**weights, "conv_out.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"unet could not be read .*conv_out"):
        take(ddim)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds no diffusion_pytorch_model.safetensors"):
        take(ddim)


def test_a_network_of_any_size_asks_for_one(ddim: Path, tmp_path: Path, take: Callable[..., Bundle]) -> None:
    change(ddim / "unet" / "config.json", sample_size=None)
    change(ddim / "model_index.json", _class_name="OtherPipeline")
    assert "say which with --resolution" in refused("import", ddim, cwd=tmp_path)
    assert take(ddim, resolution=16).manifest.output.shape == (4, 16, 16)
    change(ddim / "unet" / "config.json", sample_size=[8, 16])
    assert take(ddim).manifest.output.shape == (4, 8, 16)
    with pytest.raises(ValueError, match="makes images of 8x16; leave --resolution out"):
        take(ddim, resolution=32)


def test_a_network_that_is_given_an_image_besides_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = {key: value for key, value in network("text").config.items() if not key.startswith("_")}
    net = UNet2DConditionModel(**config | {"in_channels": 9})
    save(tmp_path / "inpaint", CASES["sd-ddim"]())
    net.save_pretrained(tmp_path / "inpaint" / "unet")
    said = refused("import", "inpaint", "--tokens", 5, cwd=tmp_path)
    assert "takes 9 channels and gives 4: the others are an image or a mask that it changes" in said


def classes_of(path: Path) -> Path:
    config = {key: value for key, value in network("plain").config.items() if not key.startswith("_")}
    torch.manual_seed(3)
    UNet2DModel(**config | {"num_class_embeds": 10}).save_pretrained(path / "unet")
    return path


def test_all_classes_of_a_unet_are_classes_unless_the_last_one_is_said_to_mean_none(
    ddim: Path, tmp_path: Path, take: Callable[..., Bundle]
) -> None:
    said = fewstep("import", classes_of(ddim), "--steps", 2, "--out", "a.bundle", cwd=tmp_path).stderr
    assert "all 10 classes are taken for classes, and nothing means none" in said
    bundle = Bundle.load(tmp_path / "a.bundle")
    assert bundle.manifest.signature.inputs == (LabelInput(classes=10, null=False),)
    net = UNet2DModel.from_pretrained(ddim / "unet")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load_network(bundle, "teacher").evaluate(x, torch.tensor(500.0), torch.tensor([9]))
        assert torch.equal(found, net(x, 500, torch.tensor([9])).sample)
    assert "no input of this bundle means none" in refused(
        "export", "a.bundle", "--solver", "ddim", "--guidance", 2, cwd=tmp_path
    )
    fewstep("export", "a.bundle", "--precision", "fp32", cwd=tmp_path)
    fewstep("generate", "a.bundle", "--labels", "9", "--out", "a.png", cwd=tmp_path)
    assert take(ddim, null_class=True).manifest.signature.inputs == (LabelInput(classes=9),)


@pytest.mark.parametrize(
    ("file", "keys", "sentence"),
    [
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "the pipeline has vqvae (VQModel): fewstep drives a network"),
        ("model_index.json", {"requires_aesthetics_score": True}, "a refiner begins with an image"),
        ("model_index.json", {"transformer_2": ["diffusers", "DiT"]}, "the pipeline has transformer_2 (DiT)"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "names a vae and has no vae/"),
        ("unet/config.json", {"mask_rate": 0.1}, "sets mask_rate to 0.1, which UNet2DModel of diffusers"),
        (
            "unet/config.json",
            {"class_embed_type": "timestep"},
            "has class_embed_type 'timestep', for which it is told what fewstep does not",
        ),
        (
            "scheduler/scheduler_config.json",
            {"thresholding": True},
            "has thresholding True, which is refused: its limit depends",
        ),
        ("scheduler/scheduler_config.json", {"new_trick": 0.5}, "sets new_trick to 0.5, which DDIMScheduler of diffusers"),
    ],
)
def test_what_a_configuration_says_and_nobody_reads_is_refused_by_name(
    file: str, keys: dict[str, Any], sentence: str, ddim: Path, tmp_path: Path
) -> None:
    change(ddim / file, **keys)
    assert sentence in refused("import", ddim, cwd=tmp_path)
    assert not list(tmp_path.glob("*.bundle"))
    change(ddim / file, **dict.fromkeys(keys))
    fewstep("import", ddim, "--steps", 2, "--out", "a.bundle", cwd=tmp_path)


def test_what_one_scheduler_has_and_another_leaves_aside_is_no_fault(ddim: Path, take: Callable[..., Bundle]) -> None:
    """SDXL's Euler scheduler carries keys of DDIM and PNDM."""
    change(ddim / "scheduler" / "scheduler_config.json", skip_prk_steps=True, sample_max_value=1.0, use_karras_sigmas=False)
    bundle = take(ddim)
    assert bundle.manifest.default in bundle.manifest.plans


def test_a_refiner_by_its_text_encoder(tmp_path: Path) -> None:
    pipeline = save(tmp_path / "xl", CASES["sdxl-euler"]())
    (pipeline / "text_encoder_2").mkdir()
    (pipeline / "text_encoder_2" / "config.json").write_text(json.dumps({"projection_dim": 10}))
    assert "is told 5 numbers besides the prompt, 6 are driven" in refused("import", "xl", "--tokens", 5, cwd=tmp_path)


def test_tokens_come_from_the_tokenizer_where_it_says_a_number(tmp_path: Path, take: Callable[..., Bundle]) -> None:
    pipeline = save(tmp_path / "sd", CASES["sd-ddim"]())
    assert "say so with --tokens" in refused("import", "sd", cwd=tmp_path)
    (pipeline / "tokenizer").mkdir()
    (pipeline / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert "say so with --tokens" in refused("import", "sd", cwd=tmp_path)
    change(pipeline / "tokenizer" / "tokenizer_config.json", model_max_length=7)
    assert take(pipeline).manifest.signature.inputs[0].tensor.shape == (7, 12)


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert "model_index.json is not there" in refused("import", tmp_path / "nowhere", cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    assert "has neither unet/ nor transformer/" in refused("import", "empty", cwd=tmp_path)
    (tmp_path / "empty" / "unet").mkdir()
    (tmp_path / "empty" / "unet" / "config.json").write_text('{"_class_name": "LuminaNextDiT2DModel"}')
    DDPMScheduler().save_pretrained(tmp_path / "empty" / "scheduler")
    assert "the network is a LuminaNextDiT2DModel" in refused("import", "empty", cwd=tmp_path)

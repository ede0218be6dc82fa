"""What training reads: streams of parquet files, latents, and images with prompts."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from small import POOLED, TEXT, small
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.calibration.teacher import Teacher
from fewstep.data import open_images
from fewstep.data.inputs import inputs_of
from fewstep.data.latents import encode_images, open_latents
from fewstep.data.stream import RowGroups, Stream, open_stream
from fewstep.system.arrays import read_arrays
from fewstep.trainer.batches import Loader, open_examples
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.draws import Draws
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher

RNG = np.random.default_rng(0)
CONFIG = TeacherConfig(iterations=3, warmup=1, batch=4, channels=(8,), patch=1)


def _parquet(root: Path, counts: tuple[int, ...] = (40, 25), group: int = 10, classes: int = 2) -> Path:
    """Files of so many images, each of one color, so that an image says which it is."""
    import datasets

    root.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    begin = 0
    for name, count in zip("abc", counts, strict=False):
        rows = range(begin, begin + count)
        made = {"image": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in rows], "label": [i % classes for i in rows]}
        datasets.Dataset.from_dict(made, features=features).to_parquet(root / f"{name}.parquet", batch_size=group)
        begin += count
    return root


def _seen(stream: Stream, positions: np.ndarray) -> list[int]:
    return stream[positions][0][:, 0, 0, 0].tolist()


def test_a_stream_has_the_training_images_of_its_directory(tmp_path: Path) -> None:
    root = _parquet(tmp_path / "data")
    stream, images = open_stream(f"file://{root}"), open_images(str(root))
    assert stream.signature == images.signature
    assert stream.index.tolist() == images.index.tolist()
    assert stream.labels.tolist() == images.labels.tolist()
    every = np.arange(len(stream))
    assert np.array_equal(stream[every][0], images[every][0])
    smaller = open_stream(f"file://{root}", resolution=4)
    assert smaller.image.shape == (3, 4, 4)
    shutil.copy(_parquet(tmp_path / "other", group=9) / "a.parquet", tmp_path / "data" / "a.parquet")
    known = [stream.sha256, smaller.sha256, open_stream(f"file://{root}").sha256]
    assert len(set(known)) == 3
    assert open_stream(f"file://{root}").sha256 == known[-1]


def test_a_stream_comes_from_any_file_system(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(_parquet(tmp_path / "data")), "/bucket", recursive=True)
    assert len(open_stream("memory://bucket")) == len(open_images(str(tmp_path / "data")))


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_a_stream_shows_every_image_as_often_and_never_in_the_same_order(batch: int, tmp_path: Path) -> None:
    stream = open_stream(f"file://{_parquet(tmp_path / 'data', counts=(40, 40), group=10)}")  # 8 training images of each
    rounds = []
    for turn in range(3):
        steps = range(turn * 64 // batch, (turn + 1) * 64 // batch) if 64 % batch == 0 else range(64)
        rounds.append([at for step in steps for at in stream.order(step, batch, (5,)).tolist()])
    if 64 % batch == 0 and 8 % batch == 0:  # lanes of equal length
        assert all(Counter(seen) == Counter(range(64)) for seen in rounds)
        assert rounds[0] != rounds[1] != rounds[2]
    counts = Counter(at for seen in rounds for at in seen)
    assert set(counts) == set(range(64))
    assert stream.order(7, batch, (5,)).tolist() == stream.order(7, batch, (5,)).tolist()
    assert stream.order(7, batch, (5,)).tolist() != stream.order(7, batch, (6,)).tolist()


def test_a_stream_reads_a_row_group_once_in_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    load = RowGroups._load
    monkeypatch.setattr(RowGroups, "_load", lambda self, group: (reads.append(group), load(self, group))[1])
    stream = open_stream(f"file://{_parquet(tmp_path / 'data', counts=(80, 80), group=10)}")
    loader = Loader(stream)
    for step in range(128 // 4):
        loader(Draws(0, step, 4))
    in_a_round = Counter(reads[:17])  # the first is read for its size
    assert len(reads) <= 2 * 16 + 1  # a round and what was read ahead of the next
    assert max(Counter(in_a_round).values()) <= 2


def test_processes_share_a_stream_and_read_what_one_reads(tmp_path: Path) -> None:
    source = f"file://{_parquet(tmp_path / 'data')}"
    whole = Loader(open_stream(source))
    shares = [Loader(open_stream(source)) for _ in range(2)]
    for step in (0, 1, 2, 9):
        (one, labels), (x, lx), (y, ly) = (
            whole(Draws(3, step, 4)),
            *(loader(Draws(3, step, 4, rank=rank, processes=2)) for rank, loader in enumerate(shares)),
        )
        assert torch.equal(one, torch.stack([x, y], 1).flatten(0, 1))
        assert torch.equal(labels, torch.stack([lx, ly], 1).flatten())


def test_a_teacher_learns_from_a_stream(tmp_path: Path) -> None:
    fewstep(
        "train", "--data", f"file://{_parquet(tmp_path / 'data')}", "--iterations", "2", "--batch", "4", "--out", tmp_path / "a"
    )
    assert str(Bundle.load(tmp_path / "a").manifest.records.components["teacher"].data).startswith("file://")


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    empty, texts, cut, broken = (tmp_path / name for name in ("empty", "texts", "cut", "broken"))
    empty.mkdir()
    texts.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), texts / "a.parquet")
    _parquet(cut)
    (cut / "a.parquet").write_bytes((cut / "a.parquet").read_bytes()[:-100])
    for root, message in ((empty, "no parquet file"), (texts, "no image column, it has"), (cut, "cannot be streamed")):
        with pytest.raises(ValueError, match=message):
            open_stream(f"file://{root}")
    with pytest.raises(ValueError, match="cannot be streamed"):
        open_stream("nosuch://bucket")
    broken.mkdir()
    items = [{"bytes": b"no image", "path": None} if i == 3 else {"bytes": _png(i), "path": None} for i in range(10)]
    pyarrow.parquet.write_table(pyarrow.table({"image": items}), broken / "a.parquet")
    with pytest.raises(ValueError, match=r"image 3 of row group 0 of .* is not readable"):
        Loader(open_stream(f"file://{broken}"))(Draws(0, 0, 8))
    assert "cannot be streamed" in refused("train", "--data", f"file://{empty}", "--out", tmp_path / "a")


def _png(red: int) -> bytes:
    import io

    Image.new("RGB", (8, 8), (red, 0, 0)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def _folder(root: Path) -> Path:
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for i in range(5):
            Image.fromarray(RNG.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"class{label}" / f"{i}.png")
    return root


def _autoencoder(root: Path, kind: str) -> Path:
    torch.manual_seed(0)
    if kind == "AutoencoderTiny":
        made: Any = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=2,
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    else:
        made = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2,
            norm_num_groups=4, scaling_factor=0.7, shift_factor=0.1)  # fmt: skip
    made.save_pretrained(root)
    return root


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_latents_are_what_the_encoder_makes_and_decode_to_the_images(kind: str, tmp_path: Path) -> None:
    data, directory = _folder(tmp_path / "data"), _autoencoder(tmp_path / "vae", kind)
    encode_images(str(data), directory, tmp_path / "latents", batch=3)
    latents, images = open_latents(tmp_path / "latents"), open_images(str(data))
    assert latents.labels.tolist() == images.labels.tolist()
    assert latents.signature == images.signature
    every = np.arange(len(images))
    model = latents.load_autoencoder()
    pixels = torch.from_numpy(images[every][0]) / 127.5 - 1
    with torch.no_grad():
        made = model.encode(pixels)
        mean = made.latents if kind == "AutoencoderTiny" else made.latent_dist.mean
        found = torch.from_numpy(latents[every][0]).float()[:, :2]
        assert torch.allclose(latents.decoder()(found), model.decode(mean).sample, atol=2e-2)
    x0, labels = Loader(latents)(Draws(0, 0, 8))
    again, _ = Loader(latents)(Draws(0, 0, 8))
    assert torch.equal(x0, again)
    assert x0.shape == (8, *latents.state.shape)
    at = latents.order(0, 8, (0,))
    assert labels.tolist() == latents.labels[at].tolist()
    drawn = x0 - torch.from_numpy(latents[at][0]).float()[:, :2]
    if kind == "AutoencoderTiny":
        assert not drawn.any()
    else:
        deviation = torch.from_numpy(latents[at][0]).float()[:, 2:]
        assert 0.8 < float((drawn / deviation).std()) < 1.2


def test_a_latent_teacher_and_its_generator_make_images(tmp_path: Path) -> None:
    data, directory = _folder(tmp_path / "data"), _autoencoder(tmp_path / "vae", "AutoencoderKL")
    latents, out = tmp_path / "latents", tmp_path / "a.bundle"
    fewstep("encode", data, "--autoencoder", directory, "--out", latents)
    fewstep(
        "train",
        "--data",
        latents,
        "--iterations",
        "2",
        "--batch",
        "4",
        "--sigma-data",
        "1",
        "--log-to",
        tmp_path / "log",
        "--out",
        out,
    )
    bundle = Bundle.load(out)
    assert bundle.manifest.decoder is not None
    assert bundle.manifest.state.shape == (2, 8, 8)
    assert list((tmp_path / "log").glob("*.png"))
    bundle = distill(bundle, "one", SidConfig(iterations=2, batch=2, adversarial_from=0.0), samples=open_latents(latents))
    teacher = Teacher(bundle, "one")
    assert teacher.outputs(bundle.plan("one"), teacher.draw(2, seed=0)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="makes other samples than"):
        distill(bundle, "two", SidConfig(iterations=1, batch=2), samples=open_images(str(data)))


def test_damaged_latents_and_others_in_the_way_are_refused(tmp_path: Path) -> None:
    data, directory = _folder(tmp_path / "data"), _autoencoder(tmp_path / "vae", "AutoencoderTiny")
    latents = encode_images(str(data), directory, tmp_path / "latents")
    assert "is there already" in refused("encode", data, "--autoencoder", directory, "--out", latents)
    assert "is no autoencoder's directory" in refused("encode", data, "--autoencoder", data, "--out", tmp_path / "b")
    said = refused("train", "--data", latents, "--resolution", "8", "--out", tmp_path / "b")
    assert "holds latents, whose size is what it is; leave --resolution out" in said
    file = latents / "latents.npy"
    whole = file.read_bytes()
    for damaged in (whole[:-2], b"", b"\x80" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not readable as latents"):
            open_latents(latents)
    file.write_bytes(whole)
    np.save(latents / "labels.npy", np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="do not go with 3 labels"):
        open_latents(latents)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".new")] == []


def _prompts(path: Path, prompts: int = 2) -> Path:
    torch.manual_seed(0)
    (embeds,) = (each.tensor for each in TEXT)
    negative = torch.zeros(1, *embeds.shape)
    save_file({embeds.name: torch.randn(prompts, *embeds.shape).half(), f"negative_{embeds.name}": negative}, path)
    return path


def test_a_teacher_learns_what_prompts_say(tmp_path: Path) -> None:
    """Images of the first prompt are dark, of the second light: so must estimates be where all is noise."""
    for label in range(2):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (60 + 135 * label,) * 3).save(tmp_path / "data" / str(label) / f"{i}.png")
    given = read_arrays(_prompts(tmp_path / "prompts.safetensors"))
    images = open_examples(str(tmp_path / "data"), inputs=inputs_of(given))
    assert images.signature.inputs == TEXT
    network = {key: value for key, value in small("text").denoiser.net.config.items() if not key.startswith("_")}
    network |= {"in_channels": 3, "out_channels": 3, "_class_name": "UNet2DConditionModel"}
    config = TeacherConfig(iterations=120, batch=16, warmup=10, tau=1.0, network=network, patch=1, halflife_images=200)
    bundle = train_teacher(tmp_path / "a.bundle", images, config, arrays=given)
    assert bundle.manifest.signature.inputs == TEXT
    teacher = Teacher(bundle)
    inputs = teacher.draw(8, seed=0, arrays=given)
    with torch.no_grad():
        made = teacher.denoiser(5.0 * inputs.noise[:, 0], 5.0, *inputs.condition).mean((1, 2, 3))
    assert float(made[1::2].min() - made[::2].max()) > 0.5


def test_a_file_of_prompts_has_its_arrays_in_any_order(tmp_path: Path) -> None:
    data, prompts = _folder(tmp_path / "data"), tmp_path / "prompts.safetensors"
    shapes = {each.name: each.tensor.shape for each in POOLED}
    arrays = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    save_file(arrays | {f"negative_{name}": torch.zeros(1, *shape) for name, shape in shapes.items()}, prompts)
    given = read_arrays(prompts)
    assert [each.name for each in inputs_of(given)] == [each.name for each in POOLED][::-1]
    network = {key: value for key, value in small("sd3").denoiser.net.config.items() if not key.startswith("_")}
    network |= {"in_channels": 3, "out_channels": 3, "sample_size": 16, "pos_embed_max_size": 8}
    network["_class_name"] = "SD3Transformer2DModel"
    config = replace(CONFIG, channels=TeacherConfig.channels, network=network, kind="flow")
    images = open_examples(str(data), inputs=inputs_of(given))
    bundle = train_teacher(tmp_path / "a.bundle", images, config, arrays=given)
    assert bundle.manifest.signature.inputs == POOLED
    fewstep("train", "--data", data, "--inputs", prompts, "--start", "teacher", "--iterations", 1, "--out", bundle.root)
    assert Bundle.load(bundle.root).manifest.denoisers.keys() == {"teacher", "teacher_tuned"}


def test_prompts_that_do_not_go_with_the_images_are_refused(tmp_path: Path) -> None:
    data, prompts = _folder(tmp_path / "data"), _prompts(tmp_path / "one.safetensors", prompts=1)
    message = refused("train", "--data", data, "--inputs", prompts, "--out", tmp_path / "a")
    assert "has the label 1, of 1 rows of the arrays that were given" in message
    with pytest.raises(ValueError, match=r"got \[1, 2\] of them"):
        inputs_of({"prompt_embeds": np.zeros((2, 3, 4)), "pooled_prompt_embeds": np.zeros((1, 5))})
    with pytest.raises(ValueError, match=r"give the tensors prompt_embeds, got negative_pooled, prompt_embeds"):
        inputs_of({"prompt_embeds": np.zeros((2, 3, 4)), "negative_pooled": np.zeros((1, 5))})
    with pytest.raises(ValueError, match=r"negative_prompt_embeds has shape \(N, 3, 4\), got \(1, 3, 5\)"):
        inputs_of({"prompt_embeds": np.zeros((2, 3, 4)), "negative_prompt_embeds": np.zeros((1, 3, 5))})
    assert not (tmp_path / "a").exists()

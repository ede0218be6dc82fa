"""A small classifier of the real images, trained on demand: its features are the space the metrics measure in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from fewstep.artifact.spec import refuse_mixed_precision
from fewstep.data import Images, batches, digest
from fewstep.evaluation.metrics import Features
from fewstep.models.mixed_precision import autocast, precision_here
from fewstep.models.tensors import save_tensors
from fewstep.system.processes import keep_to_own_cores
from fewstep.system.progress import Track, silent
from fewstep.system.readable import readable

__all__ = ["Classifier", "ClassifierConfig", "classifier"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the classifier. Changing one changes the metric: distances of two settings do not compare.

    Args:
        epochs: passes over the images.
        batch: images of a step.
        lr: the highest learning rate.
        seed: of weights and batches; another seed is another network.
        precision: bf16, no (fp32) or, with auto, what is faster on the machine that trains it.

    Raises:
        ValueError: for another word of precision.
    """

    epochs: int = 12
    batch: int = 128
    lr: float = 3e-3
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        refuse_mixed_precision(self.precision)


class Classifier(Features):
    """Images (B, C, H, W) uint8 -> features (B, 64); `head` turns features into logits (B, classes)."""

    head: nn.Module

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.num_features = 64
        widths = (channels, 32, 64, 128)
        blocks = [_block(a, b, pool=b < 128) for a, b in pairwise(widths)]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64), nn.SiLU())
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images.float() / 127.5 - 1)
        return features


def _block(channels: int, width: int, *, pool: bool) -> nn.Sequential:
    layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def classifier(
    images: Images, cache: Path, config: ClassifierConfig = ClassifierConfig(), *, track: Track = silent
) -> Classifier:
    """The classifier for a training split, in eval mode; read from the cache directory when these settings were trained.

    Args:
        images: the training split, with classes.
        cache: directory of trained ones.
        config: of the training.
        track: shows progress.

    Raises:
        ValueError: for images without classes, or a file of the cache that cannot be read.
    """
    known = images.signature.labels
    if known is None:
        raise ValueError(f"{images.source} has no classes, so no classifier can be trained on it; use one folder per class")
    settings = asdict(config) | {"source": images.source, "images": digest(images.sha256, images.index, images.labels)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"classifier-{key}.safetensors"
    keep_to_own_cores()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Classifier(images.image.channels, known.classes)
        if path.is_file():
            with readable(str(path), "remove it, and it is trained again"), safe_open(path, "pt") as file:
                model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
                model.trained_in = file.metadata()["precision"]
        else:
            model.trained_in = precision_here(config.precision, torch.device("cpu"), "train classifier").say()
            _train(model, images, config, track)
            cache.mkdir(parents=True, exist_ok=True)
            save_tensors(path, model.state_dict(), {"precision": model.trained_in})
    return model.eval()


def _train(model: Classifier, images: Images, config: ClassifierConfig, track: Track) -> None:
    assert model.trained_in
    chunks = [(torch.tensor(pixels), torch.tensor(labels)) for pixels, labels in batches(images, 1024)]
    pixels, labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    steps = max(config.epochs * len(images) // config.batch, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1)
    for _ in track(range(steps), "train classifier"):
        i = torch.randint(len(images), (config.batch,))
        with autocast(model.trained_in, torch.device("cpu")):
            logits = model.head(model(_jittered(pixels[i])))
        optimizer.zero_grad()
        functional.cross_entropy(logits.float(), labels[i]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _jittered(pixels: Tensor) -> Tensor:
    """Each image turned by up to 14 degrees, scaled by up to 10 % and moved by up to 5 % of its side."""
    turn, scale = (torch.rand(len(pixels)) - 0.5) * 0.5, 1 + (torch.rand(len(pixels)) - 0.5) * 0.2
    cos, sin = turn.cos() * scale, turn.sin() * scale
    move = (torch.rand(len(pixels), 2) - 0.5) * 0.2
    matrix = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels.float(), grid, align_corners=False, padding_mode="border")

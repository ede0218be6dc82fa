"""Where the parts of a checkpoint lie on a disk: as diffusers saves pipelines, flat, in a cache, as one network or one file.

Only JSON is read here. What a model_index.json names and nobody uses is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.system.json_object import read_object

__all__ = ["Layout", "find_layout"]

PARTS = ("unet", "transformer")
# What pipelines have besides a network, a scheduler and an autoencoder: prompts are encoded outside, images are not evaluated.
ASIDE = {f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
ASIDE |= {"safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "force_zeros_for_empty_prompt"}
ASIDE |= {"add_watermarker", "id2label"}
REASONS = {"requires_aesthetics_score": "a refiner begins with an image and is told how good it is, which is not driven"}
ADD_SCHEDULER = (
    "a network alone does not say what it estimates: write the scheduler that it was trained for beside it, for example with "
    "python -c \"from diffusers import DDIMScheduler; DDIMScheduler(prediction_type='epsilon').save_pretrained('{}')\""
)


@dataclass(frozen=True)
class Layout:
    """The parts of a checkpoint.

    Args:
        root: the directory that was given, or the version in a cache.
        network: the directory of its config.json.
        config: of the network.
        scheduler: its configuration.
        index: model_index.json, {} where there is none.
        autoencoder: a directory, None for pixels.
        weights: a single file for all parts, where they are not in their directories.
    """

    root: Path
    network: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    index: dict[str, Any] = field(default_factory=dict)
    autoencoder: Path | None = None
    weights: Path | None = None

    @property
    def pipeline(self) -> str | None:
        """The class of the pipeline, where the checkpoint says so."""
        return self.index.get("_class_name")

    def about(self, part: str, file: str) -> dict[str, Any]:
        """What a JSON file of another part says, {} where it is not there.

        Args:
            part: a folder of the checkpoint, such as tokenizer.
            file: in that folder.
        """
        path = self.root / part / file
        return read_object(path) if path.is_file() else {}


def find_layout(directory: Path, weights: Path | None = None) -> Layout:
    """Read a directory: a pipeline, one whose network lies beside model_index.json, or a network with a scheduler beside it.

    Args:
        directory: of diffusers, or a repository in a Hugging Face cache.
        weights: a single file; the directory then holds the configurations that belong to it.

    Raises:
        FileNotFoundError: for a directory that is none of them.
        ValueError: for a part that is not driven or is missing, or a cache of several versions.
    """
    root = _snapshot(directory)
    flat = (root / "config.json").is_file()
    if not flat and not (root / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{directory / 'model_index.json'} is not there, so this is not a diffusers pipeline directory; save one with "
            "diffusers' save_pretrained"
        )
    index = read_object(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    _account_for_parts(index)
    network = next((root / part for part in PARTS if (root / part).is_dir()), root if flat else None)
    if network is None:
        raise ValueError(f"{directory} has neither unet/ nor transformer/; fewstep imports the network of a pipeline")
    config = _config(network / "config.json", "a network")
    found = [path for path in (root / "scheduler", root) if (path / "scheduler_config.json").is_file()]
    if not found:
        raise ValueError(f"{root} has no scheduler_config.json; {ADD_SCHEDULER.format(root)}")
    scheduler = read_object(found[0] / "scheduler_config.json")
    autoencoder = root / "vae" if (root / "vae").is_dir() else None
    if autoencoder is None and any(index.get("vae") or ()):
        raise ValueError(f"{root} names a vae and has no vae/; copy the checkpoint again from its source")
    return Layout(root, network, config, scheduler, index, autoencoder, weights)


def _config(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, so this is not {what}; save one with diffusers' save_pretrained")
    return read_object(path)


def _snapshot(directory: Path) -> Path:
    """The files of a repository in a Hugging Face cache (models--NAME), or the directory itself."""
    snapshots = directory / "snapshots"
    if not snapshots.is_dir():
        return directory
    main = directory / "refs" / "main"
    names = [main.read_text("utf-8").strip()] if main.is_file() else sorted(path.name for path in snapshots.iterdir())
    if len(names) != 1 or not (snapshots / names[0]).is_dir():
        raise ValueError(f"{directory} is a cache of several versions; name one of those in {snapshots}")
    return snapshots / names[0]


def _account_for_parts(index: Mapping[str, Any]) -> None:
    for name, value in index.items():
        empty = value in (None, False) or (isinstance(value, list) and not any(value))
        if name.startswith("_") or name in {*PARTS, *ASIDE, "scheduler", "vae"} or empty:
            continue
        why = REASONS.get(name, "fewstep drives a network, a scheduler and a vae")
        raise ValueError(f"the pipeline has {name} ({value if not isinstance(value, list) else value[-1]}): {why}")

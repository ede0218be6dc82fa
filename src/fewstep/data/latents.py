"""Images as an autoencoder's latents, made once, so that a latent network does not encode them at every update.

A directory: latents.npy (N, 2 C, h, w) float16, mean and deviation of every latent, or the mean alone (N, C, h, w) where the
encoder says no more; labels.npy; about.json; autoencoder/ as diffusers saves it. Needs torch; encoding needs diffusers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from pydantic import ValidationError

from fewstep.artifact.components import DecoderEntry
from fewstep.artifact.signature import ImageOutput, Input, Signature, State
from fewstep.artifact.staging import check_place
from fewstep.data import Images, Samples, classes, described, digest, open_images, positions
from fewstep.models.decoder import Decoder, decoded, load_autoencoder
from fewstep.system.processes import several_on_cpu
from fewstep.system.progress import Track, silent, unsaid
from fewstep.system.strict import Strict

__all__ = ["Latents", "encode_images", "is_latents", "open_latents"]

ABOUT, LATENTS, LABELS_FILE, AUTOENCODER = "about.json", "latents.npy", "labels.npy", "autoencoder"


class AboutLatents(Strict):
    """What the latents are of: the names of its classes, and what was said of the images when they were encoded."""

    source: str
    image: ImageOutput
    state: State
    decoder: DecoderEntry
    names: tuple[str, ...] = ()  # of the classes, where the source has some
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latents(Samples):
    """A split of latents; rows are means and deviations (N, C or 2 C, h, w) float16, in the scale that the sampler works in.

    Args:
        walked: what a sampler walks on, (C, h, w).
        entry: of the decoder, which has the scale.
        autoencoder: directory of what made them.
    """

    walked: State
    entry: DecoderEntry
    autoencoder: Path

    @property
    def state(self) -> State:
        """What a sampler walks on; their output is what the decoder makes of it."""
        return self.walked

    def states(self, values: Any, normal: Callable[..., Any]) -> Any:
        """Drawn from the mean and deviation that the encoder made of an image.

        Args:
            values: a tensor of rows, (B, C or 2 C, h, w).
            normal: draws unit noise, (B, *shape) for the shape it is called with.

        Returns:
            (B, C, h, w) in fp32.
        """
        channels, *sides = self.walked.shape
        mean, deviation = values[:, :channels].float(), values[:, channels:].float()
        return mean + deviation * normal(channels, *sides) if deviation.numel() else mean

    def load_autoencoder(self) -> Any:
        """What made them, in fp32."""
        return load_autoencoder(self.autoencoder, self.entry.kind)

    def decoder(self) -> Decoder:
        """Back to images."""
        return Decoder(self.load_autoencoder(), self.entry).eval()


def encode_images(
    source: str,
    autoencoder: Path,
    out: Path,
    *,
    resolution: int | None = None,
    batch: int = 16,
    note: Callable[[str], None] = unsaid,
    track: Track = silent,
) -> Path:
    """Encode all images of a source that `open_images` knows and write the directory `out`, beside it first.

    Every process encodes its share. Latents are kept in float16, the arithmetic is fp32.

    Args:
        source: of images, as for `open_images`.
        autoencoder: a directory that diffusers saved.
        out: the directory to write.
        resolution: side in pixels, as for `open_images`.
        batch: images that a process encodes at once.
        note: called with lines about the images.
        track: shows progress.

    Returns:
        `out`.

    Raises:
        FileExistsError: when `out` exists.
        ValueError: for an autoencoder that fewstep does not drive, images it does not take, or latents beyond float16.
        FileNotFoundError: for a source there is not.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name or remove it")
    check_place(out)
    processes = PartialState(cpu=several_on_cpu())
    images = open_images(source, "all", resolution=resolution, track=track)
    model = _autoencoder(autoencoder)
    (entry, state), new = decoded(model, images.image), out.with_name(f"{out.name}.new")
    model.requires_grad_(False).eval().to(processes.device)
    channels = _encoded(model, entry, images, np.arange(1), processes.device).shape[1]
    shape = (len(images), channels, *state.axes)
    if processes.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        np.lib.format.open_memmap(new / LATENTS, "w+", np.float16, shape)
    processes.wait_for_everyone()
    rows = np.lib.format.open_memmap(new / LATENTS, "r+")
    for line in images.notes:
        note(line)
    starts = range(processes.process_index * batch, len(images), processes.num_processes * batch)
    for start in track(starts, "encode"):
        at = np.arange(start, min(start + batch, len(images)))
        rows[at] = _encoded(model, entry, images, at, processes.device)
    rows.flush()
    processes.wait_for_everyone()
    if processes.is_main_process:
        np.save(new / LABELS_FILE, images.labels)
        model.cpu().register_to_config(_name_or_path="")  # else the path it was loaded from goes along
        model.save_pretrained(new / AUTOENCODER)
        about = AboutLatents(
            source=source, image=images.image, state=state, decoder=entry, names=images.names, notes=images.notes
        )
        (new / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", "utf-8")
        new.rename(out)
    processes.wait_for_everyone()
    return out


def _autoencoder(directory: Path) -> Any:
    try:
        kind = json.loads((directory / "config.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{directory} is no autoencoder's directory; give one with config.json and weights, as diffusers saves"
        ) from None
    return load_autoencoder(directory, kind)


def _encoded(
    model: Any, entry: DecoderEntry, images: Images, at: npt.NDArray[np.int64], device: torch.device
) -> npt.NDArray[np.float16]:
    """Means and deviations, (B, 2 C, h, w), or means alone where the encoder says no more."""
    pixels = torch.from_numpy(images[at][0]).to(device).float() / 127.5 - 1
    with torch.no_grad():
        made = model.encode(pixels)
    if entry.kind == "AutoencoderTiny":
        moments = [(made.latents - entry.shift_factor) * entry.scaling_factor]
    else:
        known = made.latent_dist
        moments = [(known.mean - entry.shift_factor) * entry.scaling_factor, known.std * entry.scaling_factor]
    values = torch.cat(moments, 1)
    if not bool(values.isfinite().all()) or float(values.abs().max()) > np.finfo(np.float16).max:
        raise ValueError(f"the encoder makes latents beyond float16 of images {at[0]} to {at[-1]}; it does not fit such images")
    return values.to(torch.float16).cpu().numpy()


def is_latents(path: Path) -> bool:
    """Whether a directory is one that `encode_images` wrote."""
    return (path / ABOUT).is_file() and (path / LATENTS).is_file()


def open_latents(path: Path, *, inputs: Sequence[Input] | None = None) -> Latents:
    """The training split of a directory, the same as of the images it was made of. The latents stay on disk, memory-mapped.

    Args:
        path: a directory that `encode_images` wrote.
        inputs: what they are made from, where that is not their classes; labels number it then.

    Raises:
        ValueError: for one that is damaged, or where nothing is left for the split.
    """
    try:
        about = AboutLatents.model_validate_json((path / ABOUT).read_bytes())
        rows = np.lib.format.open_memmap(path / LATENTS, "r")
        labels = np.lib.format.open_memmap(path / LABELS_FILE, "r")
        shapes = [(len(labels), n * about.state.channels, *about.state.axes) for n in (1, 2)]
        if rows.shape not in shapes or rows.dtype != np.float16 or labels.dtype != np.int64 or labels.ndim != 1:
            raise ValueError(f"latents of shape {rows.shape} do not go with {len(labels)} labels and what {ABOUT} says")
    except (OSError, ValueError, ValidationError) as error:
        raise ValueError(f"{path} is not readable as latents ({' '.join(str(error).split())[:300]}); encode anew") from None
    index = positions(str(path), labels, "train")
    made_from = tuple(inputs) if inputs else classes(str(path), labels, about.names)
    known: dict[str, Any] = {
        "sha256": digest(about, rows.shape, np.asarray(labels)),
        "names": about.names,
        "notes": about.notes or (described(str(path), labels, about.names),),
    }
    signature, entry = Signature(inputs=made_from, output=about.image), about.decoder
    return Latents(str(path), signature, rows, index, labels[index], about.state, entry, path / AUTOENCODER, **known)

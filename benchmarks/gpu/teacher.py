"""Part four: a color teacher that learns for the minutes that remain, and goes on where an earlier run's files are given.

What comes back is small: averaged weights in fp16, in files of at most 15 MB each, a sheet of samples, and teacher.json with
every run so far. A later run begins from those weights with a fresh optimizer. As a bundle, from the folder benchmarks:
python -m gpu.teacher FOLDER OUT.bundle
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifact.bundle import Draft
from fewstep.artifact.card import write_card
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Trained
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.data import Images
from fewstep.evaluation.features import EfficientNet
from fewstep.evaluation.metrics import ImageEvaluator
from fewstep.models.decoder import in_units
from fewstep.models.denoiser import Denoiser, fresh_network, save_network
from fewstep.models.tensors import save_tensors
from fewstep.sampling.guidance import guided
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.plan import sample
from fewstep.sampling.solvers import heun
from fewstep.system.picture import save_grid
from fewstep.trainer.configs import TeacherConfig
from fewstep.trainer.teacher import TeacherRun, Teaching
from gpu.color import LICENSE, open_color
from gpu.job import Work

__all__ = ["teach"]

FILE_BYTES = 15_000_000
PROBED, WARM = 20, 5  # updates that the speed is read from, and before them
EVALUATE_SECONDS = 40.0  # kept for sampling and evaluating
COMPILED_SECONDS = 420.0  # with as many, compiling pays
SHEET = 100
SIGNATURE = Signature(inputs=(LabelInput(classes=10),), output=ImageOutput(channels=3, height=32, width=32))


def unet_config(channels: tuple[int, ...], layers: int, groups: int) -> dict[str, Any]:
    """diffusers' U-Net for 32x32 images, with attention at 16x16."""
    down, up = ["DownBlock2D"] * len(channels), ["UpBlock2D"] * len(channels)
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": layers,
        "block_out_channels": list(channels),
        "down_block_types": down,
        "up_block_types": up,
        "norm_num_groups": groups,
        "attention_head_dim": channels[1] // 3,
        "dropout": 0.1,
        "num_class_embeds": 11,
    }


# 14.5 million weights: what two files of averaged weights hold.
TEACHINGS = {
    "large": TeacherConfig(
        network=unet_config((96, 192, 192), 2, 32), batch=256, lr=1e-3, warmup=200, halflife_images=5e4, tau=1.0, patch=1
    ),
    "tiny": TeacherConfig(network=unet_config((6, 12), 1, 6), batch=4, lr=1e-3, warmup=2, halflife_images=10, tau=1.0, patch=1),
}


def teach(work: Work) -> None:
    """The task."""
    if work.data is None:
        raise ValueError("there are no images to learn from; --data takes the color set that benchmarks/gpu/pack.sh makes")
    images = open_color(work.data)
    config = TEACHINGS[work.scale.teaching]
    compiled = work.scale.device == "cuda" and work.left() > COMPILED_SECONDS
    config = replace(config, compile=compiled, iterations=10**6, checkpoint_every=10**6)
    run = TeacherRun(work.scratch / "teacher.bundle", "teacher", images, config, Teaching(license=LICENSE))
    runs = go_on(run, work.before) if work.before else []
    about = learn(work, run)
    work.note(runs=[*runs, about], network=config.network, images=len(images), license=LICENSE)
    work.note(weights=keep(run.average, work.kept))
    work.add(**about)
    about["scores"] = evaluated(work, run.average, open_color(work.data, "held-out").about(work.scale.evaluated))
    work.add(**about["scores"])


def learn(work: Work, run: TeacherRun) -> dict[str, Any]:
    """Updates for the time there is: how many it holds is known after the first ones, and the rate falls to 0 with the last."""
    reserve = EVALUATE_SECONDS if work.scale.device == "cuda" else 0.0
    begin = probe = time.time()
    step = 0
    while step < run.config.iterations and work.left() > reserve:
        run.update(step)
        step += 1
        if step in (WARM, WARM + PROBED):
            if work.scale.device == "cuda":
                torch.cuda.synchronize()
            now = time.time()
            if step > WARM:
                more = (work.left() - reserve) / ((now - probe) / PROBED)
                most = step + int(0.97 * more) if work.scale.device == "cuda" else step + work.scale.updates
                run.config = replace(run.config, iterations=most)
                print(f"  {PROBED / (now - probe):.1f} updates a second, {most} in all", flush=True)
            probe = now
    seconds = time.time() - begin
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpu": torch.cuda.get_device_name() if work.scale.device == "cuda" else None,
        "precision": run.chosen.precision,
        "compiled": run.config.compile,
        "updates": step,
        "images_seen": step * run.config.batch,
        "seconds": seconds,
    }


def go_on(run: TeacherRun, before: Path) -> list[dict[str, Any]]:
    """Put an earlier run's weights into this one; what is known of all earlier ones. Raises ValueError for other files."""
    found, tensors = read(before)
    own = run.denoiser.net.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in tensors.items()}:
        raise ValueError(f"the weights in {before} are of another network; leave --before out")
    for denoiser in (run.denoiser, run.average):
        denoiser.net.load_state_dict(tensors)
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What teacher.json says, and the weights it names, in fp32. Raises ValueError for what this part did not write."""
    way_out = "copy all files of the earlier run again, or leave --before out"
    try:
        found = json.loads((folder / "teacher.json").read_text("utf-8"))["tasks"]["teach"]
        tensors: dict[str, Tensor] = {}
        for name, sha256 in found["weights"].items():
            path = folder / Path(name).name
            if path.stat().st_size > 2 * FILE_BYTES or digest(path) != sha256:
                raise ValueError(f"{name} is not the file that was written")
            tensors |= {key: value.float() for key, value in load_file(path).items()}
        if not isinstance(found["runs"], list) or not isinstance(found["network"], dict):
            raise ValueError("teacher.json names no runs")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no earlier teacher ({' '.join(str(error).split())}); {way_out}") from None
    return found, tensors


def keep(denoiser: Denoiser, folder: Path) -> dict[str, str]:
    """Write averaged weights in fp16, in as many files as they take; their hashes by name."""
    written = {}
    for i, part in enumerate(_parts(denoiser.net.state_dict()), 1):
        path = folder / f"teacher-{i}.safetensors"
        save_tensors(path, part)
        written[path.name] = digest(path)
    return written


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for key, value in tensors.items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if part and size + half.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[key], size = half, size + half.nbytes
    yield part


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evaluated(work: Work, denoiser: Denoiser, held_out: Images) -> dict[str, Any]:
    """A sheet of samples, and their distances to held-out images in the features of EfficientNet-Lite0."""
    made = draw(denoiser, held_out.labels, work.scale.device)
    sheet = draw(denoiser, np.arange(min(SHEET, work.scale.evaluated)) % 10, work.scale.device)
    save_grid(work.kept / "samples.png", sheet.transpose(0, 2, 3, 1), columns=10, scale=2)
    scores = ImageEvaluator(EfficientNet(), held_out).score(made, held_out.labels).numbers()
    return {"evaluated": len(held_out)} | {key: scores[key] for key in ("frechet", "kernel", "precision", "recall")}


def draw(denoiser: Denoiser, labels: npt.NDArray[np.int64], device: str) -> npt.NDArray[np.uint8]:
    """Images (n, C, H, W) uint8 by 18 steps of Heun's method."""
    plan, generator = heun(denoiser.parametrisation.grid(18)), torch.Generator().manual_seed(0)
    made = []
    denoiser.eval()
    for some in torch.from_numpy(labels).split(250):
        noise = torch.randn(len(some), *SIGNATURE.output.shape, generator=generator).to(device)
        with torch.inference_mode():
            x = sample(guided(denoiser, (some.to(device),), ()), plan.begin(noise), plan)
            made.append(in_units(x, SIGNATURE.output).round().to(torch.uint8).cpu())
    images: npt.NDArray[np.uint8] = torch.cat(made).numpy()
    return images


def as_bundle(folder: Path, out: Path) -> None:
    """The teacher of a folder as a bundle, from which generators are distilled and graphs exported."""
    found, tensors = read(folder)
    parametrisation, state = Edm(sigma_data=0.5), SIGNATURE.output.state
    denoiser = fresh_network(found["network"], state, SIGNATURE.inputs, parametrisation=parametrisation)
    denoiser.net.load_state_dict(tensors)
    with Draft.create(out, SIGNATURE) as draft:
        save_network(draft, "teacher", denoiser)
        plan = heun(denoiser.parametrisation.grid(18))
        draft.manifest.plans["heun18"] = PlanEntry.of(plan, denoiser="teacher", solver="Heun, 18 steps")
        draft.manifest.default = "heun18"
        draft.manifest.records.components["teacher"] = Trained(
            settings={"runs": found["runs"]},
            mixed_precision=found["runs"][-1]["precision"],
            data="cifar10",
            samples=found["images"],
            license=found["license"],
        )
        write_card(draft)


if __name__ == "__main__":
    as_bundle(Path(sys.argv[1]), Path(sys.argv[2]))

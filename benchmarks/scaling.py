"""Memory and arithmetic of training by the size of the network: python benchmarks/scaling.py

Counts, without allocating anything (torch's meta device), weights, floating-point operations of a forward pass, and what
autograd keeps for the way back, of small networks and of large ones as published. Trains and distils the small ones in fresh
processes and holds their peak memory and seconds against what was counted. Writes benchmarks/results/scaling.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from fit_cost import line
from throughput import WARM, Clock
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fewstep.artifact.signature import ArrayInput, ImageOutput, Input, LabelInput, Signature
from fewstep.data import Images
from fewstep.models.denoiser import unet
from fewstep.models.families import family_of
from fewstep.system.machine import described
from fewstep.system.progress import silent
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.sid import distill
from fewstep.trainer.teacher import train_teacher

RESULT = Path(__file__).parent / "results" / "scaling.json"
WIDTHS, BATCH, UPDATES = ((32, 64), (64, 128), (96, 192), (128, 256)), 16, 15
# Bytes for a weight: fp32, its gradient, Adam's two moments, and copies (average; teacher, average, best).
LONE: dict[str, Any] = {"mixed_precision": "no", "checkpoint_every": 10**6}
TEACHER_BYTES, SID_BYTES = 4 + 4 + 8 + 4, 2 * (4 + 4 + 8) + 3 * 4

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
ADM: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 3,
    "block_out_channels": (192, 384, 576, 768),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 64,
    "num_class_embeds": 1001,
}
DIT: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "num_embeds_ada_norm": 1000,
}
SD3: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
Shape, Inputs = tuple[int, ...], tuple[Input, ...]
LABELS: Inputs = (LabelInput(classes=1000),)
DIGITS = Signature(inputs=(LabelInput(classes=10),), output=ImageOutput(channels=1, height=28, width=28))


def embeddings(tokens: int, width: int, pooled: int) -> Inputs:
    """Of a prompt."""
    return ArrayInput(name="prompt_embeds", shape=(tokens, width)), ArrayInput(name="pooled_prompt_embeds", shape=(pooled,))


LARGE: dict[str, tuple[Callable[[], nn.Module], Shape, Inputs]] = {
    "ADM of EDM, 64x64": (lambda: UNet2DModel(**ADM), (3, 64, 64), LABELS),
    "DiT-XL/2, 256x256": (lambda: DiTTransformer2DModel(**DIT), (4, 32, 32), LABELS),
    "SDXL, 1024x1024": (lambda: UNet2DConditionModel(**SDXL), (4, 128, 128), embeddings(77, 2048, 1280)),
    "SD3 medium, 1024x1024": (lambda: SD3Transformer2DModel(**SD3), (16, 128, 128), embeddings(333, 4096, 2048)),
}


def counted(net: nn.Module, state: Shape, inputs: Inputs, *, dtype: torch.dtype) -> dict[str, float]:
    """Weights and, for one image more, operations of a forward pass and bytes that autograd keeps; net is on meta."""
    net.train()
    (flops, kept), (flops2, kept2) = (_forward(net.to(dtype), state, inputs, images) for images in (1, 2))
    return {"weights": float(sum(p.numel() for p in net.parameters())), "flops": flops2 - flops, "kept": kept2 - kept}


def flash(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention as GPUs compute it, which keeps no matrix of scores; elsewhere torch counts those in."""
    made: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return made


def _forward(net: nn.Module, state: Shape, inputs: Inputs, images: int) -> tuple[float, float]:
    family = family_of(type(net).__name__)
    dtype = next(net.parameters()).dtype
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    types = {"int64": torch.int64, "float32": dtype}
    tensors = [each.tensor for each in inputs]
    given = {t.name: torch.empty(images, *t.shape, device="meta", dtype=types[t.dtype]) for t in tensors}
    told = {"time_ids": torch.empty(6, device="meta")} if isinstance(net, UNet2DConditionModel) else {}
    x = torch.empty(images, *state, device="meta", dtype=dtype)
    attention = patch.object(functional, "scaled_dot_product_attention", flash)
    with attention, FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda tensor: tensor):
        family.call(net, x, torch.empty(1, device="meta"), given, told)
    return float(flops.get_total_flops()), float(sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own))


class Watch(Clock):
    """Reads the peak of memory besides, of the updates that are timed: what checkpoints before and after take is read apart."""

    def track(self, steps: Iterable[Any], name: str) -> Iterator[Any]:
        for i, step in enumerate(super().track(steps, name)):
            if i == WARM:
                Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak is counted from here
            self.peak = _memory("VmHWM")
            yield step


def worker(run: str, channels: tuple[int, ...], out: Path) -> None:
    """Trains or distils a small network and writes its peak memory and seconds for an update."""
    clock = Watch()
    pixels, labels = np.random.default_rng(0).integers(0, 255, (64, 28, 28, 1), np.uint8), np.arange(64) % 10
    images = Images("made up", DIGITS, pixels, np.arange(64), labels)
    before = _memory("VmRSS")
    steps = WARM + UPDATES + 1
    teacher = TeacherConfig(iterations=1 if run == "distill" else steps, batch=BATCH, channels=channels, tau=1.0, **LONE)
    bundle = train_teacher(out.with_suffix(".bundle"), images, teacher, track=clock.track if run == "train" else silent)
    if run == "distill":
        config = SidConfig(iterations=steps, batch=BATCH, guidance=1.5, **LONE)
        distill(bundle, "one", config, track=clock.track)
    found = {
        "peak": clock.peak - before,
        "peak_saving": _memory("VmHWM") - before,
        "seconds": (clock.end - clock.begin) / UPDATES,
    }
    out.write_text(json.dumps(found), "utf-8")


def _memory(what: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def measured(run: str, channels: tuple[int, ...]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "found.json")
        command = [sys.executable, "-W", "ignore", __file__, run, ",".join(map(str, channels)), str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        found: dict[str, float] = json.loads(out.read_text("utf-8"))
        return found


# How often a network is run for an update, and what of that autograd keeps at once. Distilling with the teacher guided: F
# learns from one image of G; then G makes an image that F, and T twice, look at, with gradients through all.
RUNS = {
    "train": {"weights": TEACHER_BYTES, "kept": 1, "flops": 3},
    "distill": {"weights": SID_BYTES, "kept": 4, "flops": 1 + 3 + 4 * 3},
}


def needed(run: str, count: dict[str, float], batch: int) -> dict[str, float]:
    """Bytes and operations of an update, by what was counted."""
    of = RUNS[run]
    return {
        "weights_bytes": of["weights"] * count["weights"],
        "kept_bytes": of["kept"] * batch * count["kept"],
        "flops": of["flops"] * batch * count["flops"],
    }


def main() -> None:
    small: list[dict[str, Any]] = []
    large: dict[str, dict[str, Any]] = {}
    for channels in WIDTHS:
        with torch.device("meta"):
            net = unet(DIGITS.output.state, DIGITS.inputs, channels=channels, layers=1, attention=False, patch=2).net
        count = counted(net, (4, 14, 14), DIGITS.inputs, dtype=torch.float32)
        for run in RUNS:
            row = {"channels": channels, "run": run, **count, **needed(run, count, BATCH), **measured(run, channels)}
            small.append(row)
            print(row, flush=True)
    fits = {}
    for run in RUNS:
        rows = [row for row in small if row["run"] == run]
        fits[run] = {
            "peak by bytes": line([row["weights_bytes"] + row["kept_bytes"] for row in rows], [row["peak"] for row in rows]),
            "peak while saving by weights": line([row["weights"] for row in rows], [row["peak_saving"] for row in rows]),
            "seconds by flops": line([row["flops"] for row in rows], [row["seconds"] for row in rows]),
        }
    for name, (make, state, inputs) in LARGE.items():
        with torch.device("meta"):
            count = counted(make(), state, inputs, dtype=torch.bfloat16)
        large[name] = {**count, **{run: needed(run, count, 1) for run in RUNS}}
        print(name, large[name], flush=True)
    result = {"machine": described(), "batch": BATCH, "small": small, "fits": fits, "large": large}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    worker(sys.argv[1], tuple(map(int, sys.argv[2].split(","))), Path(sys.argv[3])) if len(sys.argv) > 1 else main()

"""How large everything is: REAL for a machine with an NVIDIA GPU, REHEARSAL for the tests, with the CPU in the GPU's place."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.artifact.manifest import Precision

__all__ = ["REAL", "REHEARSAL", "Scale"]


@dataclass(frozen=True)
class Scale:
    """device: torch's; where it is not cuda, ONNX Runtime's CPU provider plays the CUDA provider (tests/stand_in_cuda.py).

    classes: of networks, see tests/small.py. checked: plans of the shipped networks that are checked in every layout and
    precision. timed: the bundle with the plans `digits` that are timed. large: networks of real size, see networks.py, and
    memory_gb that they need on the GPU. batches: of latencies. seconds: that each way of running a plan is timed for at least,
    calls: how often. compiling: options of torch.compile by mode. sizes: of networks that learn, see training.py, for so many
    updates; tolerance is what theirs is multiplied by. teaching: the network of the part teacher, see teacher.py. evaluated:
    images that are made to evaluate it.
    """

    device: str
    classes: tuple[str, ...]
    checked: tuple[str, ...]
    precisions: tuple[Precision, ...]
    timed: str
    digits: tuple[str, ...]
    large: tuple[str, ...]
    memory_gb: dict[str, float]
    batches: tuple[int, ...]
    seconds: float
    calls: int
    compiling: dict[str, dict[str, str]]
    sizes: tuple[str, ...]
    updates: int
    equal_updates: int
    tolerance: float
    teaching: str
    evaluated: int


REAL = Scale(
    device="cuda",
    classes=("unet", "plain", "dit", "text", "sdxl", "sd3"),
    checked=("sid1", "table4", "ddim10_w2_interval"),
    precisions=("fp32", "fp16", "bf16"),
    timed="digits",
    digits=("sid1", "table4", "ddim10_w2", "ddim10_w2_interval"),
    large=("sd15", "sdxl_size"),
    memory_gb={"sd15": 16.0, "sdxl_size": 40.0},
    batches=(1, 4, 16),
    seconds=0.25,
    calls=20,
    compiling={mode: {"mode": mode} for mode in ("reduce-overhead", "max-autotune")},
    sizes=("digits", "color"),
    updates=30,
    equal_updates=50,
    tolerance=1.0,
    teaching="large",
    evaluated=2000,
)
REHEARSAL = Scale(
    device="cpu",
    classes=("unet",),
    checked=(),
    precisions=("fp32",),
    timed="unet",
    digits=("plain", "guided"),
    large=("tiny",),
    memory_gb={"tiny": 1.0},
    batches=(2,),
    seconds=0.0,
    calls=2,
    compiling={"reduce-overhead": {"backend": "eager"}, "max-autotune": {"backend": "eager"}},
    sizes=("tiny",),
    updates=2,
    equal_updates=5,
    tolerance=10.0,
    teaching="tiny",
    evaluated=20,
)

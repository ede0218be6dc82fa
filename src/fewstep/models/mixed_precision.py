"""What networks compute in while they learn: chosen here and nowhere else, by what this machine is quick at. Needs torch.

A processor's word is not enough: oneDNN says that there is bf16 wherever there is AVX-512, and takes several times as long as
for fp32 where there is no more than that. So processors are measured, with a block of a network, forward and backward.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from math import inf
from typing import NamedTuple

import torch
from torch.nn import functional

__all__ = ["WORTH", "ChosenPrecision", "autocast", "precision_here", "times_fp32"]

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
WORTH = 0.9  # bf16 rounds more: a processor must gain at least this by it
ROUNDS, SECONDS = 15, 0.3  # of a measurement, two rounds at least

log = logging.getLogger(__name__)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Where networks compute in it; weights stay in fp32.

    Args:
        precision: bf16, fp16, or no for fp32.
        device: where the network is.
    """
    return torch.autocast(device.type, TYPES[precision], enabled=precision != "no")


class ChosenPrecision(NamedTuple):
    """A precision, and the sentence about it, which is for when nothing more can be refused."""

    precision: str
    sentence: str = ""
    slow: bool = False

    def say(self) -> str:
        """Log the sentence, as a warning where the precision is slow here. Gives the precision."""
        if self.sentence:
            log.log(logging.WARNING if self.slow else logging.INFO, "%s", self.sentence)
        return self.precision


def precision_here(wanted: str, device: torch.device, what: str, *, stored: str | None = None) -> ChosenPrecision:
    """bf16, fp16 or no: what is wanted or, with auto, what the stopped run began in, else what is faster here.

    Its sentence says what was chosen, and how much longer a slow one takes.

    Args:
        wanted: bf16, fp16, no or auto.
        device: where the work runs.
        what: the work, in words.
        stored: of the run that goes on.

    Raises:
        ValueError: for fp16 on a processor, where nothing scales gradients that it has no numbers for.
    """
    if device.type == "cpu" and "fp16" in (wanted, stored if wanted == "auto" else None):
        raise ValueError(f"{what} computes in fp16 on a GPU alone; on a processor take bf16 or no (fp32)")
    if wanted != "auto":
        return _given(wanted, device, f"{what} computes in", "leave out the precision, and the faster one is taken")
    if stored is not None:
        return _given(stored, device, f"{what} goes on, as it began, in", "remove its checkpoint to begin anew")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        words = "bf16" if native else "fp32: this GPU has no bf16 of its own"
        return ChosenPrecision("bf16" if native else "no", f"{what} computes in {words}")
    times = times_fp32("bf16", device.type)
    taken, name = ("bf16", "bf16") if times < WORTH else ("no", "fp32")
    return ChosenPrecision(taken, f"{what} computes in {name}: here bf16 takes {times:.2g} times as long as fp32")


def _given(precision: str, device: torch.device, doing: str, way_out: str) -> ChosenPrecision:
    """A precision that was not chosen here, with a warning where it is slow."""
    has = device.type == "cuda" and (precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False))
    times = 1.0 if has or precision == "no" else times_fp32(precision, device.type)
    if times <= 1 / WORTH:
        return ChosenPrecision(precision)
    return ChosenPrecision(
        precision, f"{doing} {precision}, which takes {times:.2g} times as long as fp32 here; {way_out}", slow=True
    )


@cache
def times_fp32(precision: str, kind: str) -> float:
    """How many times as long as in fp32 a block of a network takes in a precision on a kind of device, such as cpu.

    Both are timed in turns and the best of each counts; on a processor in one thread, by the time that it is given: threads
    that wait for each other beside other work would make either look ten times as slow.

    Args:
        precision: bf16 or fp16.
        kind: of device, such as cpu.
    """
    device, threads = torch.device(kind), torch.get_num_threads()
    blocks, best = [_block(p, device) for p in ("no", precision)], [inf, inf]
    clock = time.thread_time if kind == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    try:
        for block in blocks:
            block()  # its kernels are made
        begin = clock()
        for done in range(ROUNDS):
            for i, block in enumerate(blocks):
                start = clock()
                block()
                best[i] = min(best[i], clock() - start)
            if done and clock() - begin > SECONDS:
                break
    finally:
        torch.set_num_threads(threads)
    return best[1] / best[0]


def _block(precision: str, device: torch.device) -> Callable[[], None]:
    """A convolution, a norm and an activation of a U-Net, forward and backward; draws no random numbers."""
    images, channels, side = (8, 64, 14) if device.type == "cpu" else (32, 256, 32)  # what keeps the device busy
    x = torch.linspace(-1, 1, images * channels * side**2, device=device).reshape(images, channels, side, side).requires_grad_()
    weight = torch.linspace(-0.1, 0.1, channels**2 * 9, device=device).reshape(channels, channels, 3, 3).requires_grad_()

    def run() -> None:
        with autocast(precision, device):
            y = functional.silu(functional.group_norm(functional.conv2d(x, weight, padding=1), 32))
        y.float().square().mean().backward()  # type: ignore[no-untyped-call]
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return run

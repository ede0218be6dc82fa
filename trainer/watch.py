"""What a run shows while it goes on: curves and sheets of samples, for TensorBoard or whatever tracker accelerate knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fewstep.artifact.signature import Signature, State
from fewstep.data.conditions import Conditions
from fewstep.models.decoder import Decoder, as_output
from fewstep.models.denoiser import Denoiser
from fewstep.models.mixed_precision import ChosenPrecision, precision_here
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan, sample
from fewstep.system.picture import grid, save_grid
from fewstep.system.places import check_folder
from fewstep.system.processes import keep_to_own_cores, several_on_cpu
from fewstep.trainer import checkpoint
from fewstep.trainer.shards import is_sharded

__all__ = ["CURVE_EVERY", "Watch", "accelerator_for", "scale_as", "scaling"]

CURVE_EVERY = 10  # updates between two points; each makes a GPU wait for its number
SHEET = 20  # images


def accelerator_for(precision: str, log: Path | None, *, saved: Path, what: str) -> tuple[Accelerator, ChosenPrecision]:
    """An Accelerator for networks that compute in a precision, which tracks into the directory `log`, where there is one.

    Args:
        precision: auto, no, bf16 or fp16; with auto, that of the checkpoint `saved`, else what the first process finds faster.
        log: a directory, made where it is not there; None for no curves.
        saved: the run's checkpoint, if there is one.
        what: the work, in words.

    Returns:
        The accelerator, and the precision with a sentence about it.

    Raises:
        ImportError: without tensorboard, where there is a log.
        ValueError: where log is a file or lies inside a bundle, or there is no such precision on this device.
        OSError: where nothing can be written into log.
    """
    keep_to_own_cores()
    processes = PartialState(cpu=several_on_cpu())
    found: ChosenPrecision | None = None
    if processes.is_main_process:
        found = precision_here(precision, processes.device, what, stored=checkpoint.began_in(saved))
    (found,) = broadcast_object_list([found])
    assert found
    AcceleratorState._reset_state()  # else the first run in a process decides for all that follow
    choices = {"mixed_precision": found.precision, "cpu": several_on_cpu()}
    if log is None:
        return Accelerator(**choices), found
    import tensorboard  # noqa: F401  (accelerate would go on without a word)

    if log.is_file():
        raise ValueError(f"curves and samples go into a directory, and {log} is a file; choose another --log-to")
    check_folder(log)
    log.mkdir(parents=True, exist_ok=True)
    return Accelerator(**choices, log_with="tensorboard", project_dir=log), found


def scaling(accelerator: Accelerator) -> dict[str, Any]:
    """How gradients are scaled by now, which fp16 needs; nothing in other precisions. For `scale_as`, as JSON."""
    return accelerator.scaler.state_dict() if accelerator.scaler else {}


def scale_as(accelerator: Accelerator, state: Mapping[str, Any]) -> None:
    """Scale gradients as a run did that goes on.

    Args:
        accelerator: of the run that goes on.
        state: what `scaling` gave.
    """
    if accelerator.scaler and state:
        accelerator.scaler.load_state_dict(dict(state))


class Watch:
    """Curves into the accelerator's tracker, and sheets of samples from one noise, also as files in `log`.

    Does nothing where log is None, and nothing in processes other than the main one.
    """

    def __init__(
        self, accelerator: Accelerator, log: Path | None, name: str, signature: Signature, conditions: Conditions
    ) -> None:
        self.accelerator, self.log, self.name, self.signature, self.conditions = accelerator, log, name, signature, conditions
        self.decoder: Decoder | None = None
        if log is not None:
            accelerator.init_trackers(name)

    def decode_by(self, load: Callable[[], Decoder]) -> None:
        """Sheets of a latent model are decoded by what `load` gives."""
        if self.log is not None:
            self.decoder = load().requires_grad_(False).to(self.accelerator.device)

    def curve(self, step: int, **values: Tensor | float) -> None:
        """Points of curves after `step` updates, every CURVE_EVERY-th.

        Args:
            step: finished updates.
            values: one number each, by the name of its curve.
        """
        if self.log is not None and step % CURVE_EVERY == 0:
            self.accelerator.log({key: float(value) for key, value in values.items()}, step=step)

    def sheet(self, step: int, denoiser: Denoiser, plan: Plan, state: State) -> None:
        """What a network makes after `step` updates, of every class or row in turn: a picture or, of arrays, a file of them.

        Args:
            step: finished updates.
            denoiser: the network, on the accelerator's device.
            plan: without guidance.
            state: what the plan walks on.
        """
        if self.log is None or not (self.accelerator.is_main_process or is_sharded(denoiser)):
            return
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(SHEET, plan.draws, *state.shape, generator=generator).to(self.accelerator.device)
        with torch.no_grad():
            denoise = guided(denoiser, self.conditions.in_turn(SHEET), ())
            x = sample(denoise, plan.begin(noise[:, 0]), plan, list(noise[:, 1:].unbind(1)))
            made = as_output(x, self.signature.output, self.decoder)
        if not self.accelerator.is_main_process:
            return
        if made.dtype == np.uint8 and made.shape[-1] in (1, 3):
            self._show(step, made)
        else:
            np.save(self.log / f"{self.name}-{step:06d}.npy", made)

    def _show(self, step: int, images: npt.NDArray[np.uint8]) -> None:
        assert self.log is not None
        columns = min(max(self.conditions.count, isqrt(SHEET)), SHEET)
        save_grid(self.log / f"{self.name}-{step:06d}.png", images, columns=columns, scale=2)
        picture = np.asarray(grid(images, columns=columns).convert("RGB"))[None]
        for tracker in self.accelerator.trackers:
            tracker.log_images({"samples": picture}, step=step, dataformats="NHWC")

    def end(self) -> None:
        """Close the trackers. accelerate's own end_training would end the processes' group as well, and with it the run."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

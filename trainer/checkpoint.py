"""Checkpoints: a directory with every tensor of a run and where it stands; a kill never leaves half of one.

Tensors lie in safetensors files, one for each process that holds a share of them, written and read by torch's distributed
checkpoints: a run may go on with another number of processes than it was stopped with.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader as loader
from torch.distributed.checkpoint import state_dict_saver as saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

from fewstep.artifact.staging import locked
from fewstep.models.tensors import os_errors
from fewstep.system.machine import processor

__all__ = ["FREE", "Parts", "Saved", "alone", "began_in", "checkpoint_path", "load", "remove", "save"]

Parts: TypeAlias = Mapping[str, nn.Module | Optimizer]
ABOUT = "run.json"
FREE = ("checkpoint_every", "shard")  # settings that may change when a run goes on

log = logging.getLogger(__name__)


def checkpoint_path(bundle: Path, run: str) -> Path:
    """Where a run that will write into a bundle keeps its checkpoint: beside the bundle.

    Args:
        bundle: that may not be there yet.
        run: name of the network that comes of it.
    """
    return bundle.with_name(f"{bundle.name}.{run}.checkpoint")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """The right to a checkpoint, as long as a run goes on. Raises ValueError while another run has it."""
    if int(os.environ.get("RANK", "0")):  # the first process of a run holds it for all
        yield
        return
    busy = f"another process is at this run now ({path.name}); wait for its end, or choose another name"
    with locked(path.with_name(f".{path.name}.lock"), busy=busy):
        yield


def save(path: Path, parts: Parts, *, step: int, settings: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    """Write all parts as of `step` finished updates, beside the directory first, then in its place.

    Every process calls this; each writes what it alone holds.

    Args:
        path: of the checkpoint.
        parts: networks and optimizers, by name.
        step: finished updates.
        settings: of the run, as JSON has them.
        state: what else is to be kept, likewise.

    Raises:
        OSError: where it cannot be written; what was there before stays.
    """
    processes, new, old = PartialState(), _beside(path, "new"), _beside(path, "old")
    if processes.is_main_process:
        _clear(path)
    processes.wait_for_everyone()
    tensors = _tensors(parts)
    writer = HuggingFaceStorageWriter(str(new), save_distributed=True)
    try:
        with _one_error():
            saver.save(tensors, storage_writer=writer, no_dist=processes.num_processes == 1)
        if processes.is_main_process:
            about = {
                "step": step,
                "settings": settings,
                "state": dict(state or {}),
                "files": _files(new),
                "machine": _machine(),
            }
            (new / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
            if path.exists():
                path.rename(old)
            new.rename(path)
    finally:
        if processes.is_main_process:
            _clear(path)
    processes.wait_for_everyone()


class Saved(NamedTuple):
    """Where a checkpoint stands: finished updates, and what was saved besides."""

    step: int = 0
    state: Mapping[str, Any] = MappingProxyType({})


def load(path: Path, parts: Parts, *, settings: Mapping[str, Any]) -> Saved:
    """Put a checkpoint into the parts and say where it stands; at 0 where there is none. Every process calls this.

    Every process calls this.

    Args:
        path: of the checkpoint.
        parts: as they were saved; their tensors are overwritten.
        settings: of the run that is to go on.

    Raises:
        ValueError: when it is damaged or belongs to a run with other settings.
    """
    processes, old = PartialState(), _beside(path, "old")
    if processes.is_main_process and old.exists() and not path.exists():
        old.rename(path)  # killed between the two renames
    processes.wait_for_everyone()
    if not path.exists():
        return Saved()
    way_out = "remove it to start anew"
    try:
        about = json.loads((path / ABOUT).read_text("utf-8"))
        step, found, state = int(about["step"]), about["settings"], about["state"]
        if _files(path) != about["files"]:
            raise ValueError("its files are not those that were written")
        machine = about.get("machine", {})
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); {way_out}") from None
    if differences := _differences(found, json.loads(json.dumps(settings))):
        raise ValueError(
            f"{path} is of a run with other settings ({differences}); {way_out}, or repeat the command it belongs to"
        )
    tensors = _tensors(parts)
    try:
        with _one_error():
            reader = HuggingFaceStorageReader(str(path))
            loader.load(tensors, storage_reader=reader, no_dist=processes.num_processes == 1)
    except (SafetensorError, AssertionError, KeyError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); {way_out}") from None
    if machine and processes.is_main_process and (differences := _differences(machine, _machine())):
        log.warning("%s goes on on another kind of machine (%s): equal up to rounding, not bit for bit", path, differences)
    return Saved(step, state)


def began_in(path: Path) -> str | None:
    """The precision in which networks compute in the run that a checkpoint is of; None where there is no readable one."""
    for place in (path, _beside(path, "old")):
        try:
            return str(json.loads((place / ABOUT).read_text("utf-8"))["settings"]["mixed_precision"])
        except (OSError, KeyError, TypeError, ValueError):
            continue
    return None


def remove(path: Path) -> None:
    """Let a checkpoint go whose run has ended."""
    _clear(path)
    shutil.rmtree(path, ignore_errors=True)


def _clear(path: Path) -> None:
    """Remove what a save leaves beside a checkpoint, but never the one before while there is no other."""
    shutil.rmtree(_beside(path, "new"), ignore_errors=True)
    if path.exists():
        shutil.rmtree(_beside(path, "old"), ignore_errors=True)


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words; empty where nothing does."""
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    return ", ".join(f"{key} was {was.get(key)} and is {now.get(key)}" for key in changed)


def _machine() -> dict[str, Any]:
    """What the last bits of a run depend on, beside its settings."""
    processes = PartialState()
    device = processes.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes.num_processes,
        "torch": torch.__version__,
    }


def _files(path: Path) -> dict[str, int]:
    """Sizes of the files with tensors."""
    return {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f"{path.name}.{word}")


def _tensors(parts: Parts) -> dict[str, Tensor]:
    """The tensors themselves, which loading fills."""
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            found |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
        else:
            _begin(part)
            state = part.state_dict()["state"]
            found |= {f"{name}/{i}/{key}": value for i, values in state.items() for key, value in values.items()}
    return found


def _begin(optimizer: Optimizer) -> None:
    """Let an optimizer that has made no update yet have the state that it begins with, which is zeros."""
    if optimizer.state:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
            for tensor in optimizer.state[parameter].values():
                tensor.zero_()


@contextmanager
def _one_error() -> Iterator[None]:
    """What went wrong in a process, in place of torch's account of all of them, and no word where nothing did."""
    try:
        with os_errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of there being one process alone
            yield
    except CheckpointException as failed:
        with os_errors():
            raise next(iter(failed.failures.values()))[0] from None

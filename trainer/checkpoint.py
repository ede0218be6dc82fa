"""Checkpoints: one safetensors file with every tensor of a run and the step it stands at; a kill never leaves half of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.tensors import save_tensors

__all__ = ["Parts", "Saved", "checkpoint_path", "load", "save"]

Parts: TypeAlias = Mapping[str, nn.Module | Optimizer]


def checkpoint_path(bundle: Path, run: str) -> Path:
    """Where a run that will write into a bundle keeps its checkpoint: beside the bundle."""
    return bundle.with_name(f"{bundle.name}.{run}.checkpoint")


def save(path: Path, parts: Parts, *, step: int, settings: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    """Write all parts as of `step` finished updates, beside the file first, then in its place. state: JSON, besides."""
    tensors = {f"{name}/{key}": t for name, part in parts.items() for key, t in _tensors(part).items()}
    about = {"step": str(step), "settings": json.dumps(settings, sort_keys=True), "state": json.dumps(dict(state or {}))}
    save_tensors(path, tensors, about)


class Saved(NamedTuple):
    """Where a checkpoint stands: finished updates, and what was saved besides."""

    step: int = 0
    state: Mapping[str, Any] = MappingProxyType({})


def load(path: Path, parts: Parts, *, settings: Mapping[str, Any]) -> Saved:
    """Put a checkpoint into the parts and say where it stands; at 0 where there is none.

    Raises ValueError when the file is damaged or belongs to a run with other settings.
    """
    if not path.exists():
        return Saved()
    way_out = "remove it to start anew, or repeat the command it belongs to"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        step, found = int(metadata["step"]), json.loads(metadata["settings"])
        state = json.loads(metadata["state"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); {way_out}") from None
    wanted = json.loads(json.dumps(settings))
    if changed := sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k)):
        differences = ", ".join(f"{k} was {found.get(k)} and is {wanted.get(k)}" for k in changed)
        raise ValueError(f"{path} is of a run with other settings ({differences}); {way_out}")
    for name, part in parts.items():
        prefix = f"{name}/"
        _restore(part, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return Saved(step, state)


def _tensors(part: nn.Module | Optimizer) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    return {f"{i}/{key}": torch.as_tensor(v) for i, s in part.state_dict()["state"].items() for key, v in s.items()}


def _restore(part: nn.Module | Optimizer, tensors: dict[str, Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = tensor
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})

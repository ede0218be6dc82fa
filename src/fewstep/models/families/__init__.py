"""Classes of networks, one file each: a file that holds a FAMILY is all that a new class takes. Needs torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.artifact.signature import Input, State
from fewstep.models.families.base import Constants, Family

__all__ = ["FAMILIES", "check_fit", "family_of", "network_class"]


def _found() -> Mapping[str, Family]:
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    families = (getattr(module, "FAMILY", None) for module in modules)
    return {family.kind: family for family in families if family is not None}


FAMILIES = _found()


def family_of(name: str) -> Family:
    """The family of a class of diffusers. Raises ValueError for one that has none."""
    if name not in FAMILIES:
        raise ValueError(f"the network is a {name}; this version of fewstep drives {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def network_class(name: str) -> Any:
    """The diffusers class of this name. Raises ValueError for one that has no family; nothing else is imported."""
    return getattr(importlib.import_module("diffusers"), family_of(name).kind)


def check_fit(net: Any, state: State, inputs: Sequence[Input], *, patch: int, constants: Constants) -> None:
    """Raises ValueError unless a network can work on a state, folded by patch, with these inputs and constants."""
    name = type(net).__name__
    family = family_of(name)
    family.refuse_inputs(inputs)
    if len(state.axes) != 2:
        raise ValueError(f"a {name} works on states with two axes, this one has {len(state.axes)}; choose another network")
    channels, (height, width) = state.channels * patch**2, (side / patch for side in state.axes)
    size = net.config.sample_size if net.config.sample_size is not None else (height, width)
    facts = {
        "in_channels": (net.config.in_channels, channels),
        "sample_size": (tuple(size) if isinstance(size, list | tuple) else (size, size), (height, width)),
    }
    out = net.config.out_channels or channels  # twice as many where it learned its variance, too, which samplers leave aside
    facts["out_channels"] = (out, 2 * channels if out == 2 * channels else channels)
    for key, (found, wanted) in (facts | family.facts(net.config, inputs, constants)).items():
        if found != wanted:
            raise ValueError(
                f"this {name} has {key} {found}, the bundle needs {wanted}, with states {state.shape} and patch {patch}; "
                "set it so, choose a network made for it, or change output, inputs or patch"
            )

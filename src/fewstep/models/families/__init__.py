"""Classes of networks, one file each: a file that holds a FAMILY is all that a new class takes. Needs torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from fewstep.artifact.signature import Input, State
from fewstep.models.families.base import Constants, Family

__all__ = ["FAMILIES", "check_fit", "family_of", "network_class"]


def _found() -> dict[str, Family]:
    """What every file but base.py holds. Raises ValueError, which names it, for a file with no family, or another's."""
    known = dir(importlib.import_module("diffusers"))
    found: dict[str, Family] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base"):
        family = _held(name)
        if family.network is None and family.kind not in known:
            raise ValueError(
                f"families/{name}.py is of a {family.kind}, which diffusers has not; mend its name, or give `network`"
            )
        if family.kind in found:
            raise ValueError(
                f"families/{name}.py and families/{found[family.kind].file} are both of a {family.kind}; remove one of them"
            )
        found[family.kind] = family
    return found


def _held(name: str) -> Family:
    try:
        family = getattr(importlib.import_module(f"{__name__}.{name}"), "FAMILY", None)
    except ModuleNotFoundError:  # said with what to install
        raise
    except Exception as error:  # of whatever kind a file raises that is being written
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"families/{name}.py cannot be read ({reason}); mend it, or move it elsewhere") from error
    if not isinstance(family, Family):
        raise ValueError(f"families/{name}.py has no FAMILY, a Family of fewstep; give it one, or move it elsewhere")
    return family


FAMILIES = _found()


def family_of(name: str) -> Family:
    """The family of a class of diffusers. Raises ValueError for one that has none."""
    if name not in FAMILIES:
        raise ValueError(f"the network is a {name}; this version of fewstep drives {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def network_class(name: str) -> Any:
    """The class of this name, of diffusers or our own. Raises ValueError for one without a family; nothing else is imported."""
    family = family_of(name)
    return family.network or getattr(importlib.import_module("diffusers"), family.kind)


def check_fit(net: Any, state: State, inputs: Sequence[Input], *, patch: int, constants: Constants) -> None:
    """Raises ValueError unless a network can work on a state, folded by patch, with these inputs and constants.

    Args:
        net: with a configuration and a class that has a family.
        state: what a plan walks on, not yet folded.
        inputs: of the signature, in its order.
        patch: pixels of a side that are folded into channels; 1 for none.
        constants: what its family tells it besides.
    """
    name = type(net).__name__
    family = family_of(name)
    family.refuse_inputs(net.config, inputs)
    rank = len(state.axes)
    if patch > 1 and rank != 2:
        raise ValueError(f"a patch of {patch} folds two axes, and this state has {rank}; leave out the patch")
    if family.axes not in (None, rank):
        raise ValueError(f"a {name} works on states with two axes, this one has {rank}; choose another network")
    if any(side % patch for side in state.axes):
        raise ValueError(
            f"a {name} folds squares of {patch}, and states {state.shape} do not divide into them; change the size"
        )
    channels, sides = state.channels * patch**2, tuple(side / patch for side in state.axes)
    size = net.config.get("sample_size") or sides
    facts = {
        "in_channels": (net.config.in_channels, channels),
        "sample_size": (tuple(size) if isinstance(size, list | tuple) else (size,) * rank, sides),
    }
    out = net.config.out_channels or channels  # twice as many where it learned its variance, too, which samplers leave aside
    facts["out_channels"] = (out, 2 * channels if out == 2 * channels else channels)
    for key, (found, wanted) in (facts | family.facts(net.config, inputs, constants)).items():
        if found != wanted:
            raise ValueError(
                f"this {name} has {key} {found}, the bundle needs {wanted}, with states {state.shape} and patch {patch}; "
                "set it so, choose a network made for it, or change output, inputs or patch"
            )

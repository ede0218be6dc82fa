"""Every key of a configuration that diffusers wrote is accounted for: used by the class, neutral, or refused by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["account", "arguments", "keys_of"]

NEUTRAL = (None, False)


def keys_of(made: Any) -> set[str]:
    """What a class of diffusers is configured by."""
    return set(inspect.signature(made.__init__).parameters) - {"self"}


def account(
    config: Mapping[str, Any], made: Any, *, sisters: Iterable[Any] = (), neutral: Mapping[str, Any] | None = None
) -> None:
    """Raises ValueError for a key that the class does not read and whose value may mean something, and for words where it has
    a number, or true or false.

    Args:
        config: of a network, a scheduler or an autoencoder, as diffusers wrote it; keys that begin with an underscore are its
            own.
        made: the class of diffusers that is to read it.
        sisters: classes that are made from one another's configurations, and leave each other's keys aside.
        neutral: values of keys that older versions of diffusers wrote, at which they mean nothing.
    """
    known, theirs = keys_of(made), {key for sister in sisters for key in keys_of(sister)}
    for key, value in config.items():
        means_nothing = any(value is nothing for nothing in NEUTRAL) or (neutral or {}).get(key, ...) == value
        if not (key.startswith("_") or key in known or key in theirs or means_nothing):
            version = importlib.import_module("diffusers").__version__
            raise ValueError(
                f"the configuration sets {key} to {value!r}, which {made.__name__} of diffusers {version} does not read; "
                "remove the key where it means nothing, or upgrade diffusers"
            )
    for key, value in arguments(config, made).items():
        default = inspect.signature(made.__init__).parameters[key].default
        if isinstance(value, str) and isinstance(default, int | float):  # "no" would count as true
            belongs = "true or false" if isinstance(default, bool) else "a number"
            raise ValueError(f"the configuration sets {key} to {value!r}, where {made.__name__} has {belongs}; correct it")


def arguments(config: Mapping[str, Any], made: Any) -> dict[str, Any]:
    """The part of a configuration that a class reads.

    Args:
        config: of a whole configuration, its other keys included.
        made: the class of diffusers.
    """
    return {key: value for key, value in config.items() if key in keys_of(made)}

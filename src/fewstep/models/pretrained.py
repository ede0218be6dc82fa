"""A network or an autoencoder with its weights, in fp32: from a directory of diffusers, or from a single file for all parts.

Nothing is executed, so pickles are refused. Every tensor has its place, and every place its tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

__all__ = ["Loaded", "load_part", "load_single"]

NAMED = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?:-\d+-of-\d+)?\.safetensors")
SHOWN = 3
CONVERT = (
    "{0} holds pickles (.bin), which execute code when they are read; where you trust them, write safetensors: "
    "python -c \"from diffusers import {1} as C; C.from_pretrained('{0}', use_safetensors=False).save_pretrained('{0}')\""
)


class Loaded(NamedTuple):
    """A module of diffusers in fp32 and eval mode; notes: what was converted, in sentences."""

    module: Any
    notes: list[str]


def load_part(made: Any, directory: Path, variant: str | None = None) -> Loaded:
    """A module of the class `made` that diffusers saved.

    Args:
        made: a class of diffusers.
        directory: with config.json and .safetensors.
        variant: of the files, such as fp16; the plain ones, or the only ones there are, unless given.

    Raises:
        ValueError: where there are pickles only, no such variant, or tensors that are missing or that nothing takes.
    """
    variant, files = _files(made, directory, variant)
    with readable(directory):
        module, report = made.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True
        )
    for kind, what in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have besides"),
        ("mismatched_keys", "have in another shape"),
    ):
        if report.get(kind):
            refuse(directory, made.__name__, what, report[kind])
    return Loaded(module.float().eval(), _half(directory.name, files))


def load_single(made: Any, file: Path, directory: Path) -> Loaded:
    """A module of the class `made` out of a file that holds a whole model, by the configuration in a directory.

    Args:
        made: a class of diffusers.
        file: .safetensors, of all parts of a model.
        directory: with the config.json of this part.

    Raises:
        ValueError: where the file cannot be read, or lacks tensors.
    """
    with readable(file), _undispatched():
        module = made.from_single_file(str(file), config=str(directory), local_files_only=True)
    missing = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if missing:
        refuse(file, made.__name__, "lack", missing)
    return Loaded(module.float().eval(), _half(f"{file.name}, {made.__name__}", [file]))


@contextmanager
def _undispatched() -> Iterator[None]:
    """diffusers leaves tensors that a file lacks without memory, then fails to move them and names none of them."""
    from diffusers.loaders import single_file_model

    dispatch = single_file_model.dispatch_model
    single_file_model.dispatch_model = lambda module, **_: module
    try:
        yield
    finally:
        single_file_model.dispatch_model = dispatch


def refuse(path: Path, name: str, what: str, keys: Any) -> None:
    """Raises ValueError that names tensors."""
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise ValueError(
        f"the weights in {path} {what} {', '.join(names[:SHOWN])}{more}, by the {name} that config.json describes; copy them "
        "again from their source, or correct config.json"
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What diffusers says, over many lines, of files that are missing or no safetensors, in a sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} could not be read ({reason}); copy it again from its source") from None


def _files(made: Any, directory: Path, variant: str | None) -> tuple[str | None, list[Path]]:
    """The variant to read, None for the plain one, and its files."""
    named = [(path, NAMED.fullmatch(path.name)) for path in sorted(directory.glob("*.safetensors"))]
    found = {match["variant"] for _, match in named if match}
    if not found:
        if any(directory.glob("*.bin")):
            raise ValueError(CONVERT.format(directory, made.__name__))
        raise ValueError(f"{directory} holds no diffusion_pytorch_model.safetensors; copy the checkpoint again from its source")
    if variant is None and None not in found:
        if len(found) > 1:
            raise ValueError(f"{directory} holds the variants {', '.join(sorted(map(str, found)))}; choose one with --variant")
        (variant,) = found
    if variant is not None and variant not in found:
        raise ValueError(
            f"{directory} has no variant {variant}; it holds {', '.join(str(name or 'the plain one') for name in found)}"
        )
    return variant, [path for path, match in named if match and match["variant"] == variant]


def _half(what: str, files: list[Path]) -> list[str]:
    """A sentence where tensors are kept in half precision."""
    counts: dict[str, int] = {}
    for file in files:
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                kind = tensors.get_slice(name).get_dtype()
                counts[kind] = counts.get(kind, 0) + 1
    half = [f"{count} tensors in {kind}" for kind, count in counts.items() if kind != "F32"]
    return [f"{what}: {', '.join(half)} of {sum(counts.values())}, read as fp32"] if half else []

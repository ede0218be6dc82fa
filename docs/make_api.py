"""Writes docs/api.md from the docstrings of what `import fewstep` gives: python docs/make_api.py"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import fewstep

PAGE = Path(__file__).parent / "api.md"
TITLES = {
    "Verbs": ("import_pipeline", "train", "distill", "calibrate", "export", "build", "compare"),
    "Running": ("Generator",),
    "Bundles": ("Bundle",),
    "What a model takes and gives": (
        "Signature",
        "LabelInput",
        "ArrayInput",
        "ImageOutput",
        "ArrayOutput",
        "Axis",
        "Column",
        "State",
    ),
    "Samplers": ("Plan", "Grid", "Guidance", "solvers", "sample", "Edm", "Eps", "Velocity", "Flow", "Betas"),
    "Networks of your own": ("Family", "Pipeline", "Asked", "Denoiser", "save_network", "save_decoder", "Draft", "PlanEntry"),
}
SETTINGS = {  # whose fields a verb takes by name
    "import_pipeline": ("fewstep.models.importer.ImportOptions",),
    "train": ("fewstep.trainer.configs.TeacherConfig",),
    "distill": ("fewstep.trainer.configs.SidConfig",),
    "calibrate": ("fewstep.calibration.configs.TableConfig", "fewstep.calibration.configs.FitConfig"),
    "compare": ("fewstep.evaluation.compare.CompareConfig",),
}


def page() -> str:
    """The whole page."""
    parts = [
        "# Python: what `import fewstep` gives\n\nMade from the docstrings by `python docs/make_api.py`. These names stay, or "
        "CHANGELOG.md says so; modules behind them may move.\n"
    ]
    for title, names in TITLES.items():
        parts.append(f"## {title}\n")
        parts += [entry(name, getattr(fewstep, name)) for name in names]
    return "\n".join(parts)


def entry(name: str, thing: Any) -> str:
    """A name: what it takes and what it says of itself; of classes and modules also what is in them."""
    text = [f"### `fewstep.{name}`\n", _said(thing)]
    if inspect.ismodule(thing):
        members = [(key, getattr(thing, key)) for key in thing.__all__]
    else:
        members = _methods(thing) if inspect.isclass(thing) else []
    if not inspect.ismodule(thing):
        text.insert(1, f"```text\n{name}{_takes(thing)}\n```\n")
    text += [_fields(place, inspect.signature(thing).parameters) for place in SETTINGS.get(name, ())]
    for key, member in members:
        text.append(f"#### `{name}.{key}{_takes(member)}`\n")
        text.append(_said(member))
    return "\n".join(text)


def _fields(place: str, own: Collection[str]) -> str:
    """The fields of a configuration with defaults and meaning, but for those that a verb has itself."""
    module, _, name = place.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    meaning: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        for names, said in re.findall(r"^- `(.*)`: (.*(?:\n  .*)*)", _said(each), re.MULTILINE):
            meaning |= dict.fromkeys(names.split(", "), " ".join(said.split()))
    lines = [f"Fields of `{name}`:", ""]
    for field in fields(kind):
        if field.name not in own:
            default = "" if field.default in (MISSING, None) else f" = {field.default}"
            lines.append(f"- `{field.name}{default}`: {meaning[field.name]}")
    return "\n".join(lines) + "\n"


def _methods(kind: type) -> list[tuple[str, Any]]:
    own = [(key, value) for key, value in vars(kind).items() if not key.startswith("_") or key == "__call__"]
    found = []
    for key, value in own:
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else getattr(value, "fget", value)
        if inspect.isfunction(function) and inspect.getdoc(function):
            found.append((key, value if isinstance(value, property) else function))
    return found


def _takes(thing: Any) -> str:
    if isinstance(thing, property):
        return ""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):  # whose own signature depends on what is imported by then
        chosen = [(key, field) for key, field in thing.model_fields.items() if not _is_fixed(field)]
        return f"(*, {', '.join(_with_default(key, field) for key, field in chosen)})"
    try:
        text = re.sub(r"ForwardRef\('(.*?)'\)", r"\1", str(inspect.signature(thing))).replace("'", "")
    except (TypeError, ValueError):
        return ""
    return re.sub(r"\((self|cls)(, )?", "(", re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text))


def _is_fixed(field: FieldInfo) -> bool:
    """Whether there is one value, which tells a class from others in a manifest."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _with_default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return name
    default = f"{type(field.default).__name__}()" if isinstance(field.default, BaseModel) else field.default
    return f"{name} = {default if default != '' else repr(default)}"


def _said(thing: Any) -> str:
    """A docstring as Markdown: its Args, Returns and Raises as lists."""
    text = inspect.getdoc(thing) or ""
    found: list[str] = []
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Source):", line):
            found += [f"**{line[:-1]}**", ""]
        elif match := re.fullmatch(r" {4}(\*{0,2}\w[\w, ]*): (.*)", line):
            found.append(f"- `{match[1]}`: {match[2]}")
        elif line.startswith("    "):
            found.append(f"  {line.strip()}" if found and found[-1].startswith(("-", "  ")) else line.strip())
        else:
            found.append(line)
    return "\n".join(found).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

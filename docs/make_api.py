"""Writes docs/api.md from the docstrings of what `import fewstep` gives: python docs/make_api.py"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

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
    "Samplers": ("Plan", "Guidance", "solvers", "Edm", "Eps", "Velocity", "Flow"),
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
    for key, member in members:
        text.append(f"#### `{name}.{key}{_takes(member)}`\n")
        text.append(_said(member))
    return "\n".join(text)


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
    try:
        text = str(inspect.signature(thing)).replace("'", "")
    except (TypeError, ValueError):
        return ""
    return re.sub(r"\((self|cls)(, )?", "(", re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text))


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

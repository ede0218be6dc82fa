"""Print the lowest version of every package that pyproject.toml allows, as constraints for pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def lowest(pyproject: Path) -> dict[str, str]:
    """name -> version. Raises ValueError for a requirement without a lowest version, or with two of them."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]:
        if requirement.startswith(f"{project['name']}["):
            continue
        parts = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?[>=]=([\w.]+)(?:; .*)?", requirement)
        if not parts:
            raise ValueError(f"{requirement!r} names no lowest version; write it as name>=version")
        name, version = parts.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} is allowed from {found[name]} and from {version}; write one of them everywhere")
    return found


if __name__ == "__main__":
    for name, version in lowest(Path(__file__).parent.parent / "pyproject.toml").items():
        print(f"{name}=={version}")

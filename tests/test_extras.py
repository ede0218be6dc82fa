"""What users are told to install exists, and is told in one way: fewstep is on no index, its extras come from its folder."""

from __future__ import annotations

import re
import tomllib

import pytest
from conftest import ROOT

from fewstep.extras import EXTRAS_OF, FOR_VERB, install, install_for

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SOURCES = [
    *(
        path
        for folder in ("src/fewstep", "runtime", "exporter", "calibration", "trainer")
        for path in (ROOT / folder).rglob("*.py")
    ),
    *(path for suffix in ("py", "mjs", "cpp") for path in (ROOT / "examples").rglob(f"*.{suffix}")),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
# Where a package is not imported by the name it is installed by.
BROUGHT_BY = {"PIL": "pillow", "google": "tritonclient", "yaml": "ray"}
GATHERED = {"demo", "dev"}  # what these hold, they hold for a purpose of the repository's own


def name_of(requirement: str) -> str:
    """torch>=2.10 -> torch; ray[serve]>=2.60 -> ray."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def brings(package: str) -> set[str]:
    """The extras that require a package, by the name it is imported by."""
    wanted = BROUGHT_BY.get(package, package).lower().replace("_", "-")
    return {extra for extra, needed in EXTRAS.items() if wanted in {n.removesuffix("-gpu") for n in map(name_of, needed)}}


@pytest.mark.parametrize("package", EXTRAS_OF)
def test_a_missing_package_is_brought_by_the_extras_named(package: str) -> None:
    found = brings(package)
    assert set(EXTRAS_OF[package]) == (found - GATHERED or found)


def test_each_verb_has_its_own_extra() -> None:
    for verb, extra in FOR_VERB.items():
        assert install_for(verb, "torch") in (install(extra), install("train")), verb
    assert install_for("train", "torch") == install("train")
    assert install_for("report", "matplotlib") == install("bench")
    assert install_for("generate", "numpy") is None


def test_the_command_is_the_readmes() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^    (pip install .*)$", readme, re.MULTILINE)
    assert install("cpu", "cli") == f"in fewstep's folder: {command}"


def test_sources_and_pages_name_extras_and_packages_that_there_are() -> None:
    required = {name_of(r) for needed in (*EXTRAS.values(), PROJECT["dependencies"]) for r in needed}
    wrong = []
    for path in SOURCES:
        text = path.read_text("utf-8")
        wrong += [f"{path}: {found}" for found in re.findall(r"(?:fewstep|'\.)\[[\w,{}]*\]?", text)]
        for extras in re.findall(r"""\binstall\(((?:["'][^)]*["'])?)\)|"\.\[([\w,]+)\]\"""", text):
            named = [word for word in re.findall(r"[\w-]+", "".join(extras)) if word != "found"]
            wrong += [f"{path}: no extra {word}" for word in named if word not in EXTRAS]
        for words in re.findall(r"pip install ((?:-\w+ )*[^\s,;:.\"'`)]+)", text):
            if name_of(words) not in required:
                wrong.append(f"{path}: pip install {words}")
    assert not wrong


def test_the_readmes_table_has_every_extra() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("| extra | brings") :].split("\n\n")[0]
    named = {word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(EXTRAS)

"""What users are told to install exists, and is told in one way: fewstep is on no index, its extras come from its folder."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from fewstep.exporter.edge.web import PINNED
from fewstep.system.extras import EXTRAS_OF, FOR_VERB, install, install_for

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
# Below these, packages have holes that are known: what a bundle, an image or a request holds reaches them.
FIXED_IN = {"onnxruntime": "1.24.4", "torch": "2.10", "pillow": "12.1.1", "onnx": "1.21", "starlette": "1.0.1"}
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


def test_every_package_has_one_lowest_version_and_the_tested_ones_are_above_it() -> None:
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest"](ROOT / "pyproject.toml")
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    tested = {name_of(name): version for name, version in tested.items()}
    for name, version in lowest.items():
        if name_of(name) in tested:  # else it is for machines with a GPU
            assert numbers(tested[name_of(name)]) >= numbers(version), name
    for name, version in FIXED_IN.items():
        assert numbers(lowest[name]) >= numbers(version), name


def numbers(version: str) -> list[int]:
    """1.24.4 -> [1, 24, 4]"""
    return [int(part) for part in version.split(".")]


def test_a_requirement_without_a_lowest_version_is_refused(tmp_path: Path) -> None:
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest"]
    for needed, sentence in ((["a"], "'a' names no lowest version"), (["a>=1", "a>=2"], "a is allowed from 1 and from 2")):
        text = f'[project]\nname = "x"\ndependencies = {needed}\n[project.optional-dependencies]\n'
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            lowest(tmp_path / "pyproject.toml")


def test_ci_installs_the_versions_that_the_page_and_the_example_name() -> None:
    installed = json.loads((ROOT / ".ci" / "package.json").read_text("utf-8"))["dependencies"]
    example = json.loads((ROOT / "examples" / "embed" / "node" / "package.json").read_text("utf-8"))["dependencies"]
    assert installed == example | {"onnxruntime-web": PINNED.version}


def test_the_readmes_table_has_every_extra() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("| extra | brings") :].split("\n\n")[0]
    named = {word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(EXTRAS)

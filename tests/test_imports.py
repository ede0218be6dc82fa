"""The shape of the code: who may import whom, and what the runtime does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("trainer", "calibration", "exporter", "runtime")
JOINERS = {"cli", "decide", "demo.py"}  # verbs call the folders; nothing else of the core may


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_the_core_and_never_each_other(folder: str) -> None:
    others = tuple(f"fewstep.{other}" for other in FOLDERS if other != folder)
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert not [name for name in _imports(path) if name.startswith(others)], path


def test_the_core_imports_no_folder() -> None:
    core = ROOT / "src" / "fewstep"
    for path in core.glob("**/*.py"):
        if path.relative_to(core).parts[0] not in JOINERS:
            assert not [n for n in _imports(path) if n.startswith(tuple(f"fewstep.{f}" for f in FOLDERS))], path


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_links_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "fewstep" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


def test_the_runtime_works_where_nothing_heavy_is_installed() -> None:
    absent = [
        "torch",
        "diffusers",
        "onnx",
        "onnx_ir",
        "tensorrt",
        "tensorrt_rtx",
        "polygraphy",
        "PIL",
        "rich",
        "typer",
        "datasets",
    ]
    code = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
        "from fewstep.runtime import Generator\n"
        "images = Generator.open('examples/digits.bundle')([3, 1, 4], seeds=[0, 1, 2])\n"
        "assert images.shape == (3, 28, 28, 1) and images.std() > 30, images.std()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "module",
    ["plan", "schedule", "solvers", "guidance", "parametrisation", "spec", "bundle", "manifest", "data", "progress", "staging"],
)
def test_the_core_is_numpy_only(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import fewstep.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cores_are_counted_in_one_place() -> None:
    """os.cpu_count is the host's, whatever a container or taskset allows."""
    for path in [*(ROOT / "src" / "fewstep").glob("**/*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]:
        if path.name != "cores.py":
            assert "cpu_count" not in path.read_text("utf-8"), path


def test_public_names_exist() -> None:
    for path in [*(ROOT / "src" / "fewstep").glob("**/*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]:
        tree = ast.parse(path.read_text("utf-8"))
        named = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
        if not path.name.startswith("__") or named:
            assert len(named) == 1, f"{path} needs one __all__"
            exported = ast.literal_eval(named[0].value)
            assert exported == sorted(exported, key=lambda n: (not n.isupper(), n[0].islower(), n)), path

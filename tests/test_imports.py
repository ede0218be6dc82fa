"""The shape of the code: who may import whom, and what the runtime does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src" / "fewstep"
FOLDERS = ("trainer", "calibration", "exporter", "runtime")
# Which rooms a room may look into besides itself. The four folders meet on disk, in a bundle, and never import each other.
BELOW = {
    "system": (),
    "sampling": ("system",),
    "artifact": ("sampling", "system"),
    "backends": ("system",),
    "models": ("artifact", "sampling", "system"),
    "data": ("artifact", "models", "system"),
    "evaluation": ("artifact", "data", "models", "sampling", "system"),
    "trainer": ("artifact", "data", "models", "sampling", "system"),
    "calibration": ("artifact", "data", "evaluation", "models", "sampling", "system"),
    "exporter": ("artifact", "backends", "models", "sampling", "system"),
    "runtime": ("artifact", "backends", "sampling", "system"),
}
# Verbs call every room; evaluating a sampler makes its images as the runtime, and its teacher's as calibration does.
JOINERS = ("cli/", *(f"evaluation/{name}.py" for name in ("compare", "report", "tau", "validate")))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def test_rooms_are_all_there_are() -> None:
    rooms = {path.name for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {*BELOW, "cli"}
    assert {path.name for path in CORE.glob("*.py")} == {"__init__.py", "api.py"}


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_what_lies_below_them(room: str) -> None:
    folder = CORE / room
    files = [path for path in folder.rglob("*.py") if not path.relative_to(CORE).as_posix().startswith(JOINERS)]
    assert files
    for path in files:
        used = {name.split(".")[1] for name in _imports(path) if name.startswith("fewstep.")}
        assert used <= {room, *BELOW[room]}, path


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_links_into_the_package(folder: str) -> None:
    link = CORE / folder
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
        "images = Generator.open('examples/digits.bundle')(labels=[3, 1, 4], seeds=[0, 1, 2])\n"
        "assert images.shape == (3, 28, 28, 1) and images.std() > 30, images.std()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("room", ["sampling", "artifact"])
def test_plans_and_bundles_need_numpy_and_pydantic_alone(room: str) -> None:
    modules = [f"fewstep.{room}.{path.stem}" for path in sorted((CORE / room).glob("[!_]*.py"))]
    light = {"numpy", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "installed = {n.split('.')[0] for n, m in sys.modules.items() if 'site-packages' in str(getattr(m, '__file__', ''))}\n"
        f"assert not {{n for n in installed if not n.startswith('_')}} - {light}, installed"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_set_is_read_without_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys; sys.modules['torch'] = None; import fewstep.data"], check=True)


def _sources() -> list[Path]:
    return [*CORE.rglob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


KINDS, KIND_CLASSES = {"label", "array", "image"}, {"LabelInput", "ArrayInput", "ImageOutput", "ArrayOutput"}
# Files that ask which kind an input or output is. All others loop over the signature, whose kinds say themselves what they are.
ASKING = {
    "src/fewstep/artifact/signature.py",  # the class input, for whoever has classes
    "src/fewstep/models/decoder.py",  # an autoencoder makes images
    "exporter/graph/layouts.py",  # the last nodes of a graph
}


def _asks(node: ast.AST) -> bool:
    """Whether a piece of code chooses by the kind of an input or output: by its class, or by its word."""
    if isinstance(node, ast.Call):
        asks = isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
        return asks and bool(_names(node) & KIND_CLASSES)
    if not isinstance(node, ast.Compare | ast.MatchClass | ast.Subscript):
        return False
    words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    by_class = bool(_names(node) & KIND_CLASSES) and not isinstance(node, ast.Subscript)  # as in tuple[LabelInput, ...]
    return by_class or ("kind" in _names(node) and bool(words & KINDS))


def _names(node: ast.AST) -> set[str]:
    parts = [*ast.walk(node)]
    return {part.id for part in parts if isinstance(part, ast.Name)} | {p.attr for p in parts if isinstance(p, ast.Attribute)}


def test_who_asks_which_kind_an_input_or_output_is_can_be_counted() -> None:
    folders = [ROOT / name for name in (*FOLDERS, "src", "benchmarks", "examples")]
    paths = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    asking = {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if any(_asks(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }
    assert asking <= ASKING, (
        f"{sorted(asking - ASKING)} ask which kind an input or output is; give every kind a property for it"
    )
    assert len(ASKING) <= 4


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ("isinstance(each, LabelInput)", True),
        ("isinstance(each, int | signature.ArrayInput)", True),
        ("type(each) is ImageOutput", True),
        ("output.kind == 'image'", True),
        ("manifest.output.kind in ('array', 'image')", True),
        ("{'label': 1, 'array': 2}[each.kind]", True),
        ("match each:\n    case LabelInput(): pass", True),
        ("LabelInput(classes=3)", False),
        ("inputs: tuple[LabelInput, ...] = ()", False),
        ("parametrisation.kind == 'edm'", False),
        ("{'output': output.kind}", False),
    ],
)
def test_asking_is_seen(code: str, asks: bool) -> None:
    assert any(_asks(node) for node in ast.walk(ast.parse(code))) is asks


def test_cores_are_counted_in_one_place() -> None:
    """os.cpu_count is the host's, whatever a container or taskset allows."""
    for path in _sources():
        if path.name != "cores.py":
            assert "cpu_count" not in path.read_text("utf-8"), path


def test_public_names_exist() -> None:
    for path in _sources():
        tree = ast.parse(path.read_text("utf-8"))
        named = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
        if not path.name.startswith("__") or named:
            assert len(named) == 1, f"{path} needs one __all__"
            exported = ast.literal_eval(named[0].value)
            assert exported == sorted(exported, key=lambda n: (not n.isupper(), n[0].islower(), n)), path

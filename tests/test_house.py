"""The numbers that say the house is right: small files and functions, one meaning for a name, public words explained."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import fewstep

ROOT = Path(__file__).parents[1]
FOLDERS = ("src/fewstep", "trainer", "calibration", "exporter", "runtime")
MAX_LINES = 350


def sources() -> list[Path]:
    """Every source file once: four folders are links inside src/fewstep."""
    found = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(found)


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def test_no_module_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_most_functions_are_read_at_a_glance() -> None:
    sizes = [_statement_lines(node) for _, node in functions()]
    assert median(sizes) <= 8


def _statement_lines(node: ast.FunctionDef) -> int:
    """Lines of a body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return sum(part.end_lineno - part.lineno + 1 for part in body if part.end_lineno) if body else 0


def test_comments_say_why_and_are_few() -> None:
    """Per line of code, without docstrings and empty lines."""
    lines = comments = 0
    for path in sources():
        text = path.read_text("utf-8")
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        comments += kinds.count(tokenize.COMMENT)
        lines += sum(bool(line.strip()) for line in text.splitlines()) - _docstring_lines(text)
    assert 0.02 <= comments / lines <= 0.08, comments / lines


def _docstring_lines(text: str) -> int:
    holders = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    return sum(len([line for line in (ast.get_docstring(node) or "").splitlines() if line.strip()]) for node in holders)


def test_a_class_name_means_one_thing() -> None:
    names = Counter(
        node.name
        for path in sources()
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_one_loop_walks_a_plan() -> None:
    """Whoever needs states calls it: a table is applied to states in one place alone."""
    found = [
        str(path.relative_to(ROOT))
        for path in sources()
        if re.search(r"^def (trajectory|advance)\(", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert found == ["src/fewstep/sampling/plan.py"]


def test_what_is_public_says_what_it_takes() -> None:
    silent = []
    for name in fewstep.__all__:
        thing = getattr(fewstep, name)
        text = inspect.getdoc(thing) or ""
        parts = {"Args:", "Returns:", "Raises:"}
        if inspect.isfunction(thing) and inspect.signature(thing).return_annotation == "None":
            parts.remove("Returns:")
        if not text or (inspect.isfunction(thing) and not parts <= set(text.splitlines())):
            silent.append(name)
    assert not silent


def test_the_reference_is_made_from_the_docstrings(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs/make_api.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (ROOT / "docs/api.md").read_text("utf-8") == maker.page(), "make it again: python docs/make_api.py"

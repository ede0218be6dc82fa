"""What goes where: results to stdout, the way there to stderr, and no orders to a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from small_sampler import sampler_bundle
from test_cli import ROOT, fewstep

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.system.console import show, table, visible

DIGITS = ROOT / "examples" / "digits.bundle"
# What is a result, of verbs that need nothing but the shipped bundle.
RESULTS = {
    ("inspect", DIGITS): "heun18",
    ("check", DIGITS): "against torch fp32",
    ("generate", DIGITS, "--out", "grid.png"): "wrote grid.png",
    ("bench", DIGITS, "--seconds", 0.01, "--batch", "1"): "samples/s",
    ("consistency", DIGITS, DIGITS, "--plan", "heun18", "--samples", 3): "cosine similarity",
    ("package", DIGITS, "--target", "device", "--out", "out"): "sizes",
}


@pytest.mark.parametrize("command", RESULTS, ids=lambda command: command[0])
def test_results_are_on_stdout_and_alone_there_as_json(command: tuple[object, ...], tmp_path: Path) -> None:
    done = fewstep(*command, cwd=tmp_path)
    assert RESULTS[command] in done.stdout
    assert RESULTS[command] not in done.stderr
    assert "next: " not in done.stdout
    as_json = fewstep(*command, "--json", cwd=tmp_path)
    assert isinstance(json.loads(as_json.stdout), dict)
    assert RESULTS[command] in as_json.stderr


def test_choices_warnings_and_progress_are_on_stderr(digits: Bundle) -> None:
    done = fewstep("export", digits.root, "--plan", "heun18", "--precision", "fp32", "--layout", "loop")
    assert done.stdout.split()[0] == f"{digits.root}/graphs/heun18.loop.fp32.onnx"
    assert len(done.stdout.splitlines()) == 1
    assert "export graphs: done" in done.stderr
    assert "next: fewstep generate" in done.stderr


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a shell, as people do."""
    given = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "F": f"{sys.executable} -m fewstep.cli"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], env=given | environment, capture_output=True, text=True, check=False
    )


def test_results_can_be_paged_searched_and_cut_off() -> None:
    found = run(f"$F inspect {DIGITS} | grep graphs/sid1.int8-fp16.onnx")
    assert found.returncode == 0
    assert found.stdout.split() == ["sid1.int8-fp16", "graphs/sid1.int8-fp16.onnx", "int8-fp16", "0.78", "MB"]  # whole lines
    cut = run(f"$F inspect {DIGITS} | true")
    assert cut.stderr == ""
    plain = run(f"$F inspect {DIGITS}", PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stderr) == (0, "")


EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202edoc\u2028next: rm\r"


def test_text_has_no_power_over_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = visible(EVIL + "é ± 漢 \U0001f98a\n")
    assert shown == "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202edoc\\u2028next: rm\\r" + "é ± 漢 \U0001f98a\n"
    assert visible("name\udcff") == "name\\udcff"  # of a file that is called in no encoding
    show(EVIL)
    table(EVIL, ["head"], [(EVIL,)])
    _harmless("".join(capsys.readouterr()))


def _harmless(text: str) -> None:
    assert not {c for c in text if c in EVIL and not c.isprintable()}
    assert "\\x1b" in text


def test_words_of_a_bundle_have_no_power_over_a_terminal(digits: Bundle) -> None:
    path = digits.root / MANIFEST
    raw = json.loads(path.read_text())
    raw["plans"]["heun18"]["solver"] = EVIL
    raw["records"]["components"]["teacher"]["license"] = EVIL
    path.write_text(json.dumps(raw))
    _harmless(fewstep("inspect", digits.root).stdout)
    json_text = fewstep("inspect", digits.root, "--json").stdout
    assert "\x1b" not in json_text
    raw[EVIL] = 1
    path.write_text(json.dumps(raw))
    _harmless(fewstep("inspect", digits.root, code=2).stderr)


def test_names_in_a_graph_have_no_power_over_a_terminal(tmp_path: Path) -> None:
    """ONNX Runtime prints some by itself: in a process, where its own words can be seen."""
    bundle = sampler_bundle(tmp_path / "a.bundle")
    model = onnx.load(bundle.root / "graphs/one.onnx", load_external_data=False)
    for node in model.graph.node:
        node.name = EVIL
    model.graph.node[0].op_type = EVIL
    with bundle.edit() as draft:
        draft.new("graphs/one.onnx").write_bytes(model.SerializeToString())
    done = run(f"$F generate {bundle.root} --plan one --out {tmp_path}/grid.png")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    _harmless(done.stderr)


def test_the_name_of_a_file_has_no_power_over_a_terminal(tmp_path: Path) -> None:
    evil = tmp_path / "\x1b[31m.bundle"
    done = run(f"cd {tmp_path}; $F inspect $'\\x1b[31m.bundle'")
    assert done.returncode == 2
    _harmless(done.stderr)
    with contextlib.suppress(OSError):
        evil.mkdir()
        (evil / MANIFEST).write_text("{")
        _harmless(run(f"cd {tmp_path}; $F inspect $'\\x1b[31m.bundle'").stderr)

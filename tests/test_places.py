"""Nothing is written into a bundle but by its own edits, whatever verb writes and by whatever links it is reached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from small_sampler import sampler_bundle
from test_cli import fewstep, refused
from typer.models import OptionInfo

from fewstep.artifact.bundle import Bundle
from fewstep.cli.app import app

# Options that name what a verb writes, with a command that is right but for it; and those that name what one reads.
WRITES: dict[str, list[str]] = {
    "train --out": ["train", "--data", "mnist5k", "--iterations", "1"],
    "train --log-to": ["train", "--data", "mnist5k", "--iterations", "1", "--batch", "2", "--out", "new.bundle"],
    "encode --out": ["encode", "images", "--autoencoder", "none"],
    "import --out": ["import", "none"],
    "distill --log-to": ["distill", "digits.bundle", "--name", "new", "--iterations", "1"],
    "report --out": ["report", "digits.bundle"],
    "tau --out": ["tau", "--data", "mnist5k"],
    "build --timing-cache": ["build", "digits.bundle"],
    "package --out": ["package", "digits.bundle", "--target", "ort"],
    "generate --out": ["generate", "digits.bundle"],
    "demo --out": ["demo", "--quick"],
    "bench --plot": ["bench", "digits.bundle"],
    "deploy triton --out": ["deploy", "triton", "digits.bundle", "--device", "cpu"],
    "deploy ray --out": ["deploy", "ray", "digits.bundle"],
}
READS = ("--inputs", "--pipeline", "--network", "--autoencoder", "--source", "--ort-web", "--config", "--scheduler-config")
SUFFIX = {"report": ".html", "generate": ".png", "bench": ".png"}
NEEDS = {"deploy triton --out": "tritonclient", "deploy ray --out": "ray", "bench --plot": "matplotlib"}


def path_options(verbs: typer.Typer, before: str = "") -> set[str]:
    """Every option of the verbs that names a file or directory."""
    found = set()
    for verb in verbs.registered_commands:
        assert verb.callback
        name = f"{before}{verb.name or verb.callback.__name__.replace('_', '-')}"
        for key, hint in get_type_hints(verb.callback, include_extras=True).items():
            kind, *more = get_args(hint) or (hint,)
            option = next((m for m in more if isinstance(m, OptionInfo)), None)
            if option and Path in (kind, *get_args(kind)):
                named = [text for text in (option.default, *(option.param_decls or ())) if isinstance(text, str)]
                found.add(f"{name} {(named or [f'--{key}'])[0].replace('_', '-')}")
    for group in verbs.registered_groups:
        assert group.typer_instance
        found |= path_options(group.typer_instance, f"{before}{group.name} ")
    return found


def test_every_option_that_names_a_file_is_known_here() -> None:
    found = path_options(app)
    assert {option for option in found if not option.endswith(READS)} == set(WRITES)


@pytest.mark.parametrize("way", ["plain", "link to the bundle", "link to a file in it"])
@pytest.mark.parametrize("option", WRITES)
def test_no_verb_writes_into_a_bundle(option: str, way: str, digits: Bundle) -> None:
    if option in NEEDS:
        pytest.importorskip(NEEDS[option])
    command, here = WRITES[option], digits.root.parent
    name = "new.bundle" if option.startswith(("train --out", "import")) else f"new{SUFFIX.get(command[0], '')}"
    if option == "deploy ray --out":
        name = "bundle.json"
    out = Path("digits.bundle") / "graphs" / name if way == "plain" and name != "bundle.json" else Path("digits.bundle") / name
    if way != "plain":
        (here / "link.bundle").symlink_to(digits.root)
        out = Path("link.bundle") / name
    if way == "link to a file in it":
        out = Path("elsewhere" + SUFFIX.get(command[0], ""))
        (here / out).symlink_to(digits.root / name)
    before = {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()}
    sentence = refused(*command, option.split()[-1], out, cwd=here)
    assert f"lies inside the bundle {digits.root}" in sentence
    assert {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("option", ["tau --out", "demo --out", "train --log-to", "package --out", "deploy triton --out"])
def test_no_verb_fills_a_bundle_with_other_files(option: str, digits: Bundle) -> None:
    if option in NEEDS:
        pytest.importorskip(NEEDS[option])
    before = {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()}
    sentence = refused(*WRITES[option], option.split()[-1], "digits.bundle", cwd=digits.root.parent)
    assert "lies inside the bundle" in sentence or "was not written by fewstep package" in sentence
    assert {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()} == before


def test_results_of_long_work_are_not_cached_in_a_bundle(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(digits.root / "cache"))
    command = ["calibrate", digits.root, "--method", "iia-ddim", "--steps", 2, "--samples", 2, "--fine", 1]
    assert "lies inside the bundle" in refused(*command)
    digits.verify()


EDITS = {
    "distill": ["--name", "new"],
    "calibrate": ["--name", "new"],
    "interval": ["--data", "mnist5k"],
    "adopt": ["--plan", "one", "--name", "new"],
    "quantize": ["--plan", "one"],
    "compare": ["--data", "mnist5k"],
    "pick": ["--calls", "4"],
    "export": ["--plan", "one"],
    "build": [],
}


def test_every_verb_that_changes_a_bundle_asks_first(tmp_path: Path) -> None:
    """On a mount point: real, where processes may have mounts of their own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of its own for a process here")
    root = sampler_bundle(tmp_path / "a.bundle").root
    code = f"""
import json, subprocess, sys
if subprocess.run(["mount", "--bind", {str(root)!r}, {str(root)!r}]).returncode:
    sys.exit("not mounted")
from test_cli import refused
print(json.dumps([refused(verb, {str(root)!r}, *more) for verb, more in {EDITS!r}.items()]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["unshare", "-m", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "not mounted" in done.stderr:
        pytest.skip(f"not mounted here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    said = dict(zip(EDITS, json.loads(done.stdout), strict=True))
    assert {verb: f"{root} is a mount point" in sentence for verb, sentence in said.items()} == dict.fromkeys(EDITS, True), said


def test_a_picture_takes_the_place_of_one_and_a_link_stays(digits: Bundle) -> None:
    here = digits.root.parent
    (here / "link.png").symlink_to(here / "grid.png")
    for _ in range(2):
        fewstep("generate", "digits.bundle", "--labels", "3", "--out", "link.png", cwd=here)
    assert (here / "link.png").is_symlink()
    assert (here / "grid.png").stat().st_size > 100
    assert {p.name for p in here.iterdir()} == {"digits.bundle", "link.png", "grid.png"}

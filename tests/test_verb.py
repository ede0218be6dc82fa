"""What every verb has: a file of options, and a dry run that shows what would be done and does nothing."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.digests import component_digest
from fewstep.cli.app import app
from fewstep.cli.verb import SHARED
from fewstep.trainer.configs import SidConfig, TeacherConfig, TuneConfig


def _verbs(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, *before, name)
        else:
            yield (*before, name), command


VERBS = dict(_verbs(typer.main.get_command(app)))
EVERY_VERB = pytest.mark.parametrize("verb", VERBS, ids=" ".join)
OPTIONS = {verb: [p for p in command.params if p.param_type_name == "option"] for verb, command in VERBS.items()}


def dry(*arguments: object, cwd: Path) -> dict[str, Any]:
    """The options that a dry run shows."""
    return tomllib.loads(fewstep(*arguments, "--dry-run", cwd=cwd).stdout)


def needed(verb: tuple[str, ...]) -> list[str]:
    """Something for everything that a verb cannot do without."""
    words: list[str] = []
    for param in VERBS[verb].params:
        if param.required:
            words += ["x"] if param.param_type_name == "argument" else [param.opts[0], "x"]
    return words


@EVERY_VERB
def test_help_lists_at_most_ten_options_of_a_verbs_own(verb: tuple[str, ...]) -> None:
    listed = [param.opts[0] for param in OPTIONS[verb] if not param.hidden and param.name not in SHARED]
    assert len(listed) <= 10, listed
    shown = fewstep(*verb, "--help").stdout
    assert all(f" {name} " in shown for name in (*listed, "--config", "--dry-run", "--help"))
    assert not any(f" {param.opts[0]} " in shown for param in OPTIONS[verb] if param.hidden)
    assert ("there are more than are listed here" in shown) == any(param.hidden for param in OPTIONS[verb])


@EVERY_VERB
def test_every_option_says_what_it_is(verb: tuple[str, ...]) -> None:
    assert [param.name for param in OPTIONS[verb] if not (param.help or "").strip().endswith((".", "..."))] == []


@EVERY_VERB
def test_a_dry_run_does_nothing_and_what_it_shows_is_the_same_run(verb: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = fewstep(*verb, *needed(verb), "--dry-run", cwd=tmp_path / "empty").stdout
    (tmp_path / "run.toml").write_text(shown)
    assert fewstep(*verb, "--config", "../run.toml", "--dry-run", cwd=tmp_path / "empty").stdout == shown
    assert not [*(tmp_path / "empty").iterdir()]
    flags = {param.opts[-1].lstrip("-").replace("-", "_") for param in VERBS[verb].params if param.name not in SHARED}
    unset = {line[2:].split(": not set")[0] for line in shown.splitlines() if line.startswith("# ")}
    found = set(tomllib.loads(shown)) | unset
    assert found <= flags
    assert found == flags or (len(verb) == 1 and verb[0] in ("calibrate",))  # one of several kinds of settings


def test_a_run_by_a_file_is_the_run_by_the_command_line(tmp_path: Path) -> None:
    given = (
        "--iterations",
        2,
        "--batch",
        4,
        "--channels",
        "8,16",
        "--noise-std",
        1.1,
        "--attention",
        "--license",
        'a "b" \\ é',
    )
    fewstep("train", *given, "--out", "a.bundle", cwd=tmp_path)
    (tmp_path / "run.toml").write_text(fewstep("train", *given, "--out", "b.bundle", "--dry-run", cwd=tmp_path).stdout)
    fewstep("train", "--config", "run.toml", cwd=tmp_path)
    a, b = (Bundle.load(tmp_path / f"{name}.bundle").manifest for name in "ab")
    assert component_digest(a, "teacher") == component_digest(b, "teacher")
    assert a.records == b.records


def test_the_command_line_counts_more_than_the_file(tmp_path: Path) -> None:
    text = 'data = "photos"\niterations = 7\nlr = 1\nmixed-precision = "no"\n'
    text += 'channels = [8, 16]\nlog_to = "logs"\nattention = true\n'
    (tmp_path / "run.toml").write_text(text)
    shown = dry("train", "--config", "run.toml", "--iterations", 9, "--no-attention", cwd=tmp_path)
    assert (shown["data"], shown["lr"], shown["mixed_precision"], shown["log_to"]) == ("photos", 1.0, "no", "logs")
    assert (shown["channels"], shown["iterations"], shown["attention"]) == ([8, 16], 9, False)
    (tmp_path / "more.toml").write_text('plan = ["a", "b"]\nbundle = "c.bundle"\ndata = "x"\n')
    assert dry("compare", "--config", "more.toml", cwd=tmp_path)["plan"] == ["a", "b"]
    shown = dry("compare", "d.bundle", "--config", "more.toml", "--plan", "c", cwd=tmp_path)
    assert (shown["bundle"], shown["plan"]) == ("d.bundle", ["c"])
    (tmp_path / "more.toml").write_text('plan = "one"\nbundle = "c.bundle"\ndata = "x"\n')
    assert dry("compare", "--config", "more.toml", cwd=tmp_path)["plan"] == ["one"]


def test_the_defaults_are_those_of_the_settings(tmp_path: Path) -> None:
    for words, config in (
        (["train"], TeacherConfig()),
        (["train", "--start", "a"], TuneConfig()),
        (["distill", "b"], SidConfig()),
    ):
        shown = dry(*words, cwd=tmp_path)
        for name, value in vars(config).items():
            if value is not None and name != "start":
                assert shown[name] == (list(value) if isinstance(value, tuple) else value), name


def test_a_network_is_a_file_and_stays_its_name(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "run.toml").write_text('network = "own.json"\n')
    assert dry("train", "--config", "run.toml", cwd=tmp_path)["network"] == "own.json"
    (tmp_path / "own.json").write_text("[]")
    assert "holds no JSON object" in refused("train", "--config", "run.toml", "--dry-run", cwd=tmp_path)


def test_as_json_a_dry_run_is_json(tmp_path: Path) -> None:
    shown = json.loads(fewstep("adopt", "a.bundle", "--plan", "p", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (shown["bundle"], shown["plan"], shown["guidance"], shown["hi"]) == ("a.bundle", "p", None, "inf")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("iteration = 3", "run.toml has 'iteration', no option of train; is 'iterations' meant?"),
        ("zebra = 3", "run.toml has 'zebra', no option of train"),
        ("config = 'x'", "no option of train"),
        ("as_json = true", "no option of train"),
        ("[network]\nx = 1", "run.toml: network is a table; options are numbers, text, truth values and lists of them"),
        ("channels = [[8]]", "run.toml: channels is a list of lists or tables"),
        ("channels = ['a']", "channels are numbers with commas between, such as 32,64, got 'a'"),
        ("iterations = ", "run.toml is no TOML file that can be read (Invalid value (at end of document))"),
        ("iterations = 0", "a run needs 1 iteration"),
        ("\0", "is no TOML file that can be read"),
        ("x = '" + "x" * (1 << 20) + "'", "is no TOML file that can be read (it has more than 1048576 bytes)"),
    ],
)
def test_a_file_that_says_something_else_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert sentence in refused("train", "--config", "run.toml", "--dry-run", cwd=tmp_path)


def test_bytes_a_directory_and_nothing_are_no_file_of_options(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    assert "run.toml is no TOML file that can be read" in refused("train", "--config", "run.toml", cwd=tmp_path)
    (tmp_path / "folder").mkdir()
    assert "folder is no TOML file that can be read" in refused("train", "--config", "folder", cwd=tmp_path)
    assert "none.toml is not there; name a TOML file" in refused("train", "--config", "none.toml", cwd=tmp_path)


@pytest.mark.parametrize(
    "text", ["iterations = 2.5", "iterations = true", "iterations = [1, 2]", "attention = 'maybe'", "lr = 'x'"]
)
def test_a_value_is_checked_as_on_the_command_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    name = text.split(" ")[0]
    done = fewstep("train", "--config", "run.toml", "--dry-run", cwd=tmp_path, code=2)
    assert f"Invalid value for '--{name}'" in done.stderr


def test_settings_of_another_method_are_refused(tmp_path: Path) -> None:
    assert dry("calibrate", "a", "--lr", 0.1, cwd=tmp_path)["lr"] == 0.1
    assert dry("calibrate", "a", "--method", "iia-ddim", "--fine", 5, cwd=tmp_path)["fine"] == 5
    sentence = "does not go with the other options that are given; leave it out"
    assert f"--lr {sentence}" in refused("calibrate", "a", "--method", "iia-ddim", "--lr", 0.1, "--dry-run", cwd=tmp_path)
    assert f"--fine {sentence}" in refused("calibrate", "a", "--fine", 5, "--dry-run", cwd=tmp_path)
    for flag, value in (("--kind", "v"), ("--channels", "8"), ("--sigma-data", 1), ("--layers", 1)):
        said = refused("train", "--start", "teacher", flag, value, "--dry-run", cwd=tmp_path)
        assert f"{flag} {sentence}" in said

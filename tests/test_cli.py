"""The command: what a newcomer types, and one sentence with exit code 2 for what cannot be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.cli import main
from fewstep.runtime import Generator
from fewstep.system import console
from fewstep.system.console import say, table
from fewstep.system.extras import install

ROOT = Path(__file__).parent.parent
VERBS = ["train", "distill", "calibrate", "quantize", "export", "build", "package", "generate", "check", "inspect", "demo"]
VERBS += [
    "serve",
    "bench",
    "doctor",
    "deploy",
    "import",
    "encode",
    "interval",
    "adopt",
    "compare",
    "pick",
    "report",
    "tau",
    "consistency",
]


def fewstep(*arguments: object, cwd: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves importing torch for each call; one test starts it for real."""
    out, err = io.StringIO(), io.StringIO()
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    with (
        patch.object(sys, "argv", ["fewstep", *map(str, arguments)]),
        patch.dict(os.environ, environment),
        contextlib.chdir(cwd or ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            status: object = 0
        except SystemExit as exit_:
            status = exit_.code or 0
    assert status == code, err.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """The sentence of a refusal; there must be exactly one."""
    lines = fewstep(*arguments, cwd=cwd, code=2).stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fewstep: ")
    return lines[0]


def test_the_installed_command_refuses_with_exit_code_two_and_one_line(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("fewstep"), "generate", "nothing.bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "fewstep: nothing.bundle is not a bundle: it has no bundle.json; make one with: fewstep train\n"


def test_help_names_every_verb_and_each_has_its_own() -> None:
    overview = fewstep("--help").stdout
    for verb in VERBS:
        assert verb in overview
    assert "Seed of the first sample" in fewstep("generate", "--help").stdout


def test_generate_writes_the_same_png_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        done = fewstep(
            "generate", ROOT / "examples/digits.bundle", "--labels", "3,1,4", "--seed", 0, "--out", tmp_path / name, "--json"
        )
    result = json.loads(done.stdout)
    assert (result["labels"], result["seeds"], result["nfe"]) == ([3, 1, 4], [0, 1, 2], 1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    grid = np.asarray(Image.open(tmp_path / "a.png"))
    assert grid.shape == (28 * 4, 3 * 28 * 4)
    assert grid.std() > 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_check_passes_on_the_shipped_bundle_and_inspect_lists_it() -> None:
    result = json.loads(fewstep("check", ROOT / "examples/digits.bundle", "--json").stdout)
    assert all(graph["ok"] for graph in result["graphs"])
    manifest = json.loads(fewstep("inspect", ROOT / "examples/digits.bundle", "--json").stdout)
    assert manifest["schema"] == 2
    assert "sid1" in fewstep("inspect", ROOT / "examples/digits.bundle").stdout


def test_check_exits_with_one_when_a_graph_is_out_of_its_limit(digits: Bundle) -> None:
    path = digits.root / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["graphs"]["sid1.fp16"]["limit"] = 1e-12
    path.write_text(json.dumps(manifest))
    assert "OUT" in fewstep("check", digits.root, code=1).stdout


def test_a_new_plan_is_written_exported_checked_and_makes_images(digits: Bundle, tmp_path: Path) -> None:
    asked = ["--solver", "ddim", "--steps", 3, "--guidance", 2, "--lo", 0.3, "--hi", 10, "--precision", "fp32"]
    name = "ddim3_w2_0.3-10"
    for how in ("--batched-guidance", "--two-passes"):  # again, it is there already
        done = fewstep("export", "digits.bundle", *asked, how, "--json", cwd=tmp_path)
        graph = Bundle.load(digits.root).manifest.graphs[f"{name}.fp32"]
        assert graph.batched_guidance == (how == "--batched-guidance")
    assert list(json.loads(done.stdout)["graphs"]) == [f"{name}.fp32"]
    assert Bundle.load(digits.root).plan(name).nfe == 4
    results = json.loads(fewstep("check", "digits.bundle", "--json", cwd=tmp_path).stdout)["graphs"]
    assert [graph["ok"] for graph in results if graph["plan"] == name] == [True]
    fewstep("generate", "digits.bundle", "--plan", name, "--out", "a.png", cwd=tmp_path)
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 30


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--data", "cifar", "--out", "new.bundle"], "'cifar' is neither a known data set (mnist5k) nor a directory"),
        (["train", "--data", "empty", "--out", "new.bundle"], "empty is empty; put images into it"),
        (["train", "--data", "broken", "--out", "new.bundle"], "is not a readable image"),
        (["train", "--iterations", "0"], "a run needs 1 iteration and 1 sample a batch, got 0 and 32"),
        (["train", "--tau", "1.5"], "Lskip needs 0 <= tau <= 1"),
        (["train", "--out", "digits.bundle"], "digits.bundle is trained already; see it with: fewstep inspect digits.bundle"),
        (["train", "--out", "empty"], "exists already"),
        (["generate", "digits.bundle", "--threads", "20000"], "threads, got 20000"),
        (["generate", "list.bundle"], "does not say which schema it has, so it is no bundle's"),
        (["import", "some.png", "--out", "new.bundle"], "is no file of weights; give .safetensors"),
        (["import", "negative", "--out", "new.bundle"], "DDIMScheduler of this configuration ("),
        (["export", "digits.bundle", "--solver", "ddim", "--plan", "table4"], "give one of the three"),
        (["export", "digits.bundle", "--scheduler", "DDIMScheduler", "--scheduler-config", "empty"], "no empty/scheduler_conf"),
        (["distill", "digits.bundle", "--steps", "5"], "take 1 to 4 steps, got 5"),
        (["distill", "nothing.bundle"], "is not a bundle"),
        (["calibrate", "digits.bundle", "--method", "magic"], "a method is one of table, iia-ddim, "),
        (["calibrate", "digits.bundle", "--steps", "0"], "a table needs steps of 1 or more, got 0"),
        (["calibrate", "digits.bundle", "--name", "new", "--data", "beauty"], "beauty"),
        (["calibrate", "digits.bundle", "--name", "my plan"], "a name has letters, digits and _ . + - only"),
        (["distill", "digits.bundle", "--name", "new", "--shard"], "start several with accelerate launch or torchrun"),
        (
            ["distill", "digits.bundle", "--name", "new", "--mixed-precision", "int8"],
            "with auto in what is faster here, got 'int8'",
        ),
        (["distill", "digits.bundle", "--name", ""], "and begins with a letter or digit, got ''"),
        (["calibrate", "digits.bundle", "--name", ""], "and begins with a letter or digit, got ''"),
        (["adopt", "digits.bundle", "--plan", "table4", "--name", ""], "and begins with a letter or digit, got ''"),
        (["export", "digits.bundle", "--solver", "ddim", "--name", ""], "and begins with a letter or digit, got ''"),
        (["distill", "digits.bundle", "--name", "new", "--guidance", "-5"], "a weight of 0 or more, got -5"),
        (["distill", "digits.bundle", "--name", "a/b"], "a name has letters, digits and _ . + - only"),
        (["train", "--data", "mnist5k", "--out", "my digits.bundle"], "a name has letters, digits and _ . + - only"),
        (["calibrate", "digits.bundle", "--name", "new", "--inputs", "no.safetensors"], "no.safetensors is not there"),
        (["calibrate", "digits.bundle", "--method", "iia-ddim", "--steps", "1"], "at least 2 steps, got 1"),
        (["export", "digits.bundle", "--plan", "fast"], "has no plan 'fast'; it has: "),
        (
            ["export", "digits.bundle", "--precision", "fp64"],
            "precision is one of fp32, fp16, bf16, int8, int8-fp16, fp8, got 'fp64'",
        ),
        (["export", "digits.bundle", "--layout", "flat"], "layout is one of unrolled, loop, step, got 'flat'"),
        (["quantize", "digits.bundle", "--precision", "fp32"], "fp32 rounds nothing"),
        (["interval", "digits.bundle", "--data", "mnist5k", "--solver", "euler"], "solver is one of ddim, "),
        (["interval", "digits.bundle", "--data", "mnist5k", "--guidance", "1"], "guidance begins above the scale 1"),
        (["interval", "digits.bundle", "--data", "mnist5k", "--recipe", "guess"], "by sweep or search, got 'guess'"),
        (["adopt", "digits.bundle", "--plan", "sid1"], "has 'sid1' already; choose another --name, or --replace it"),
        (["adopt", "digits.bundle", "--plan", "nope"], "has no plan 'nope'"),
        (
            ["adopt", "digits.bundle", "--plan", "table4", "--name", "new", "--guidance", "2", "--lo", "100"],
            "none would be guided",
        ),
        (["calibrate", "digits.bundle", "--name", "new", "--method", "iia-ddim", "--data", "mnist5k"], "reads no samples"),
        (["calibrate", "digits.bundle", "--name", "new", "--lo", "0.3"], "--lo and --hi need a --guidance"),
        (["calibrate", "digits.bundle", "--name", "new", "--features", "classifier"], "say with --data which"),
        (["pick", "digits.bundle", "--accuracy", "1.5"], "a class accuracy is at most 1"),
        (["adopt", "digits.bundle", "--plan", "fast", "--name", "x"], "has no plan 'fast'"),
        (["adopt", "digits.bundle", "--plan", "sid1", "--name", "x", "--lo", "1"], "--lo and --hi need a --guidance"),
        (["compare", "digits.bundle", "--data", "cifar"], "'cifar' is neither a known data set"),
        (["pick", "digits.bundle", "--calls", "4"], "the samplers of digits.bundle were not compared yet"),
        (["report", "digits.bundle"], "the samplers of digits.bundle were not compared yet"),
        (["distill", "digits.bundle", "--name", "new", "--samples", "5"], "--samples counts real samples, and none are read"),
        (["distill", "digits.bundle", "--name", "new", "--patience", "2"], "patience counts looks at a metric"),
        (["train", "--out", "new.bundle", "--network", "none.json"], "there is no none.json"),
        (["train", "--out", "new.bundle", "--sigma-data", "0"], "the standard deviation of the data, is above 0"),
        (["train", "--out", "new.bundle", "--resolution", "64"], "mnist5k has images of 28x28 as they are, not of 64"),
        (["tau", "--data", "mnist5k", "--runs", "1"], "needs 2 or more training runs"),
        (["export", "digits.bundle", "--solver", "euler"], "solver is one of ddim, heun, dpmpp_2m, spndm, ipndm, got 'euler'"),
        (["export", "digits.bundle", "--solver", "ddim", "--lo", "5", "--hi", "1"], "guidance needs lo < hi"),
        (["build", "digits.bundle", "--batch", "4,1"], "from 1 that increase"),
        (["generate", "digits.bundle", "--labels", "3,12"], "a label of this bundle is 0 to 9, got 12"),
        (["generate", "digits.bundle", "--labels", "three"], "a label of this bundle is 0 to 9, got 'three'"),
        (["generate", "digits.bundle", "--seed", "-1"], "a seed is a whole number"),
        (["generate", "digits.bundle", "--out", "no/such/grid.png"], "no/such is not a directory"),
        (
            ["generate", "digits.bundle", "--out", "grid.jpg"],
            "this writes PNG or NPY, so the file ends with .png or .npy; got 'grid.jpg'",
        ),
        (["generate", "digits.bundle", "--out", "/dev/zero"], "is not a file that can be replaced"),
        (["generate", "digits.bundle", "--out", "empty"], "is not a file that can be replaced"),
        (["export", "digits.bundle", "--solver", "ddim", "--steps", "1000000"], "1 to 1000 steps, got 1000000"),
        (["export", "digits.bundle", "--plan", "table4", "--steps", "3"], "describe a new plan; say of which --solver"),
        (["generate", "broken.bundle"], "is truncated or altered"),
        (["check", "newer.bundle"], "schema 3, this fewstep reads up to 2"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(arguments: list[str], sentence: str, digits: Bundle) -> None:
    here = digits.root.parent
    (here / "empty").mkdir()
    (here / "list.bundle").mkdir()
    (here / "list.bundle" / MANIFEST).write_text("[]")
    Image.new("L", (2, 2)).save(here / "some.png")
    (here / "negative").mkdir()
    (here / "negative" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": -5}
    (here / "negative" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (here / "broken" / "a").mkdir(parents=True)
    (here / "broken" / "a" / "1.png").write_bytes(b"no image")
    shutil.copytree(digits.root, here / "broken.bundle")
    graph = here / "broken.bundle" / digits.manifest.graphs["sid1.fp32"].file
    graph.write_bytes(graph.read_bytes()[:-1])
    shutil.copytree(digits.root, here / "newer.bundle")
    manifest = here / "newer.bundle" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 3', 1))
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    assert sentence in refused(*arguments, cwd=here)
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*")} == before


def test_what_pydantic_says_is_one_sentence(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), i).save(tmp_path / "images" / label / f"{i}.png")
    said = refused("train", "--data", "images", "--resolution", 1_000_000, "--out", "new.bundle", cwd=tmp_path)
    assert said == "fewstep: ImageOutput: height: Input should be less than or equal to 16384"


def test_as_many_images_as_were_asked_for_and_the_classes_take_turns(digits: Bundle, tmp_path: Path) -> None:
    done = fewstep("generate", digits.root, "--labels", "3,1", "--samples", 205, "--out", "a.png", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["labels"] == [3, 1] * 102 + [3]
    assert result["seeds"] == list(range(205))
    assert "make samples: done" in done.stderr
    expected = Generator.open(digits.root)(labels=[3, 1, 3], seeds=[0, 1, 204])
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert (picture[:112:4, :224:4] == np.concatenate(list(expected[:2, ..., 0]), 1)).all()
    assert (picture[-112::4, 4 * 112 : 5 * 112 : 4] == expected[2, ..., 0]).all()


def test_progress_counts_what_was_done_before(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY_SECONDS", 0.0)
    assert list(console.track(range(2, 5), "work")) == [2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: goes on after 2 of 5"
    assert lines[1].startswith("work: 3/5, ")
    list(console.track(range(3), "new"))
    assert "goes on" not in capsys.readouterr().err


def test_labels_of_an_unknown_option_are_clicks_own_refusal() -> None:
    assert "No such option" in fewstep("generate", "x", "--color", "red", code=2).stderr


def test_a_full_disk_gets_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the write fails in the middle, as it would there."""
    import resource

    shutil.copytree(ROOT / "examples/digits.bundle", tmp_path / "digits.bundle")
    command = [
        sys.executable,
        "-m",
        "fewstep.cli",
        "calibrate",
        "digits.bundle",
        "--method",
        "iia-ddim",
        "--steps",
        "2",
        "--samples",
        "2",
        "--fine",
        "1",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("fewstep: ")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["digits.bundle"]
    Bundle.load(tmp_path / "digits.bundle").verify()
    assert "iia-ddim2" not in Bundle.load(tmp_path / "digits.bundle").manifest.plans


def test_the_verbs_work_one_after_the_other(tmp_path: Path) -> None:
    fewstep("train", "--iterations", 4, "--batch", 8, cwd=tmp_path)
    fewstep("distill", "digits.bundle", "--steps", 2, "--iterations", 2, "--batch", 4, cwd=tmp_path)
    iia = ["--method", "iia-ddim", "--name", "iia2"]
    fewstep("calibrate", "digits.bundle", *iia, "--steps", 2, "--samples", 4, "--fine", 2, cwd=tmp_path)
    fewstep("calibrate", "digits.bundle", "--steps", 2, "--samples", 4, "--iterations", 2, "--batch", 4, cwd=tmp_path)
    assert "fitted table" in Bundle.load(tmp_path / "digits.bundle").manifest.plans["table2"].solver
    done = fewstep("export", "digits.bundle", "--plan", "sid2", "--plan", "iia2", "--precision", "fp32", "--json", cwd=tmp_path)
    assert set(json.loads(done.stdout)["graphs"]) == {"sid2.fp32", "iia2.fp32"}
    assert "next: fewstep generate digits.bundle" in done.stderr
    fewstep("check", "digits.bundle", cwd=tmp_path)
    fewstep("generate", "digits.bundle", "--plan", "iia2", cwd=tmp_path)
    assert Image.open(tmp_path / "grid.png").size == (10 * 28 * 4, 28 * 4)


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("option", [("bench", "--seconds"), ("serve", "--timeout"), ("deploy", "ray", "--wait-ms")])
def test_times_are_finite(option: tuple[str, ...], value: str) -> None:
    command = [sys.executable, "-m", "fewstep.cli", *option[:-1], "examples/digits.bundle", option[-1], value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert f"Invalid value for '{option[-1]}'" in done.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("torch", ["export"], "export"),
        ("torch", ["train", "--data"], "train"),
        ("torch", ["calibrate", "--name", "new"], "calibrate"),
        ("onnxruntime", ["generate"], "cpu"),
        ("onnx_ir", ["export"], "export"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package: str, arguments: list[str], extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from fewstep.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments, "examples/digits.bundle"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"fewstep: this needs {package}, which is not installed; {install(extra)}"


def test_a_column_with_nothing_in_it_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table("found", ["plan", "accuracy", "calls"], [("sid1", "", "1"), ("table4", "", "4")])
    shown = "".join(capsys.readouterr())
    assert "accuracy" not in shown
    assert [line.split() for line in shown.splitlines()[-2:]] == [["sid1", "1"], ["table4", "4"]]


def test_brackets_in_tables_and_sentences_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    table("found", ["what", "fix"], [("nothing", install("gpu"))])
    say(install("cpu"))
    shown = "".join(capsys.readouterr())
    assert install("gpu") in shown
    assert install("cpu") in shown

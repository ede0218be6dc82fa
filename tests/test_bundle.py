"""The bundle: what was saved comes back, and nothing else gets in."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from fewstep.artifact.bundle import MANIFEST, Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.artifact.staging import locked
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import dpmpp_2m

SIGNATURE = Signature(inputs=(LabelInput(classes=3),), output=ImageOutput(channels=1, height=8, width=8))
PLAN = dpmpp_2m(karras(5, 0.002, 80.0), Guidance(2.0, 0.3, 5.0))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    with Draft.create(tmp_path / "a.bundle", SIGNATURE) as draft:
        draft.new("components/teacher/config.json").write_text('{"x": 1}')
        about = {"directory": "components/teacher", "parametrisation": Edm(sigma_data=0.5)}
        draft.manifest.components["teacher"] = DenoiserEntry(kind="UNet2DModel", **about)
        draft.manifest.plans["best"] = PlanEntry.of(PLAN, denoiser="teacher", solver="DPM-Solver++ 2M")
        draft.manifest.default = "best"
    return Bundle.load(tmp_path / "a.bundle")


def _rewrite(bundle: Bundle, **changes: object) -> Path:
    path = bundle.root / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return bundle.root


def test_plans_come_back_to_the_last_bit(bundle: Bundle) -> None:
    bundle.verify()
    plan = bundle.plan("best")
    for name in ("alphas", "sigmas", "a", "b", "c", "guidance"):
        np.testing.assert_array_equal(getattr(plan, name), getattr(PLAN, name))
    assert json.loads((bundle.root / MANIFEST).read_text())["schema"] == 2


def test_saving_twice_gives_the_same_bytes(bundle: Bundle) -> None:
    before = (bundle.root / MANIFEST).read_bytes()
    with bundle.edit():
        pass
    assert (bundle.root / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("change", [b"", b'{"x": 1', b'{"x": 2}', None])
def test_a_changed_truncated_or_missing_file_is_refused(bundle: Bundle, change: bytes | None) -> None:
    path = bundle.root / "components/teacher/config.json"
    path.unlink()
    if change is not None:
        path.write_bytes(change)
    with pytest.raises(ValueError, match=r"components/teacher/config.json (has \d bytes|does not match|is missing)"):
        bundle.verify()
    with pytest.raises(ValueError, match=r"config.json"):
        Bundle.load(bundle.root).component("teacher")


def test_a_file_the_manifest_does_not_know_is_refused(bundle: Bundle) -> None:
    (bundle.root / "components" / "extra.py").write_text("print('hello')")
    with pytest.raises(ValueError, match=r"does not know: components/extra.py; move them elsewhere"):
        bundle.verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema 3, this fewstep reads up to 2; get a newer fewstep"),
        ({"schema": 1}, "schema: Input should be 2"),
        ({"schema": None}, "does not say which schema"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"default": "missing"}, "refers to the plan 'missing'"),
        ({"plans": {}}, "refers to the plan 'best'"),
        ({"components": {}}, "refers to the denoiser 'teacher'"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(bundle: Bundle, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bundle.load(_rewrite(bundle, **changes))


def test_a_plan_that_is_not_lower_triangular_is_refused(bundle: Bundle) -> None:
    plans = json.loads((bundle.root / MANIFEST).read_text())["plans"]
    plans["best"]["a"][0][3] = 1.0
    with pytest.raises(ValueError, match=r"plans.best: a plan is lower-triangular: row 0"):
        Bundle.load(_rewrite(bundle, plans=plans))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "c:\\x", "a//../b", "./x", ""])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Bundle, name: str) -> None:
    files = {name: {"sha256": "0" * 64, "bytes": 0}}
    with pytest.raises(ValueError, match="not a plain path inside it"):
        Bundle.load(_rewrite(bundle, files=files, components={}, plans={}, default=None))


@pytest.mark.parametrize("depth", ["components/teacher/config.json", "components"])
def test_a_link_is_refused_wherever_it_points(bundle: Bundle, tmp_path: Path, depth: str) -> None:
    path = bundle.root / depth
    os.rename(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        Bundle.load(bundle.root).verify()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_manifest_that_is_not_json_is_refused(bundle: Bundle, content: str) -> None:
    (bundle.root / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"not JSON|does not say which schema"):
        Bundle.load(bundle.root)


def test_no_bundle_and_an_existing_one_are_told_apart(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a bundle"):
        Bundle.load(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="exists already"), Draft.create(bundle.root, SIGNATURE):
        pass


def test_an_edit_that_fails_changes_nothing(bundle: Bundle) -> None:
    before = {p: p.read_bytes() for p in bundle.root.rglob("*") if p.is_file()}
    with pytest.raises(OSError, match="disk"), bundle.edit() as draft:
        draft.new("graphs/new.onnx").write_bytes(b"half")
        draft.new("components/teacher/config.json").write_bytes(b"changed")
        raise OSError("the disk is full")
    assert {p: p.read_bytes() for p in bundle.root.rglob("*") if p.is_file()} == before
    assert [p.name for p in bundle.root.parent.iterdir()] == ["a.bundle"]


def test_an_invalid_draft_is_not_saved(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="cannot be saved: it refers to the plan 'missing'"), bundle.edit() as draft:
        draft.manifest.default = "missing"
    assert Bundle.load(bundle.root).manifest.default == "best"


def test_a_kill_while_writing_leaves_the_old_bundle(bundle: Bundle) -> None:
    code = (
        "import os, sys; from fewstep.artifact.bundle import Bundle\n"
        "with Bundle.load(sys.argv[1]).edit() as draft:\n"
        "    draft.new('components/teacher/config.json').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, bundle.root], check=False).returncode == -9
    Bundle.load(bundle.root).verify()
    with bundle.edit() as draft:  # what the killed process left behind is in nobody's way
        draft.new("note.txt").write_text("again")
    Bundle.load(bundle.root).verify()
    assert [p.name for p in bundle.root.parent.iterdir()] == ["a.bundle"]


def test_processes_that_change_a_bundle_at_once_take_turns(bundle: Bundle) -> None:
    code = (
        "import sys; from fewstep.artifact.bundle import Bundle\n"
        "bundle = Bundle.load(sys.argv[1])\n"  # loaded once: what others add meanwhile is to stay
        "for i in range(8):\n"
        "    with bundle.edit() as draft:\n"
        "        name = f'note-{sys.argv[2]}-{i}'\n"
        "        draft.new(name).write_text(name); draft.manifest.plans[name] = draft.manifest.plans['best']\n"
    )
    commands = [[sys.executable, "-c", code, bundle.root, str(n)] for n in range(4)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert any("waiting for another process" in lines for lines in said)
    done = Bundle.load(bundle.root)
    done.verify()
    names = {f"note-{n}-{i}" for n in range(4) for i in range(8)}
    assert names <= set(done.manifest.plans)
    assert names <= set(done.manifest.files)
    assert [p.name for p in bundle.root.parent.iterdir()] == ["a.bundle"]


def test_who_reads_between_the_two_renames_waits_for_the_writer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, found = Event(), []
    monkeypatch.setattr(logging.getLogger("fewstep.artifact.staging"), "warning", lambda *_: waits.set())
    old = bundle.root.with_name(".a.bundle.old")
    thread = Thread(target=lambda: found.append(Bundle.load(bundle.root)))
    with locked(bundle.root.with_name(".a.bundle.lock")):
        bundle.root.with_name(".a.bundle.new").mkdir()
        os.rename(bundle.root, old)
        thread.start()
        assert waits.wait(30)
        assert old.is_dir()
        os.rename(old, bundle.root)
    thread.join()
    assert [read.manifest for read in found] == [bundle.manifest]


def test_a_plan_that_another_process_changed_is_not_written_over(bundle: Bundle) -> None:
    stale = Bundle.load(bundle.root)
    with bundle.edit() as draft:
        draft.manifest.plans["best"].solver = "another"
    with pytest.raises(ValueError, match=r"the plan 'best' of a\.bundle was changed meanwhile"), stale.edit():
        pass
    assert Bundle.load(bundle.root).manifest.plans["best"].solver == "another"


def test_of_two_that_make_one_bundle_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, errors, waits = tmp_path / "new.bundle", [], Event()
    monkeypatch.setattr(logging.getLogger("fewstep.artifact.staging"), "warning", lambda *_: waits.set())

    def second() -> None:
        try:
            with Draft.create(path, SIGNATURE) as draft:
                draft.new("second").write_text("")
        except FileExistsError as error:
            errors.append(str(error))

    with Draft.create(path, SIGNATURE) as draft:
        draft.new("first").write_text("")
        thread = Thread(target=second)
        thread.start()
        assert waits.wait(30)
    thread.join()
    assert len(errors) == 1
    assert "exists already" in errors[0]
    assert list(Bundle.load(path).manifest.files) == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["new.bundle"]


def test_what_is_missing_is_named_with_what_there_is(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="no plan 'fast'; it has: best"):
        bundle.plan("fast")
    with pytest.raises(ValueError, match="no component 'student'; it has: teacher"):
        bundle.component("student")


def test_a_change_does_not_lose_files_that_somebody_put_there(bundle: Bundle) -> None:
    note = bundle.root / "notes.txt"
    note.write_text("mine")
    with pytest.raises(ValueError, match=r"does not know: notes.txt; move them elsewhere"), bundle.edit():
        pass
    assert note.read_text() == "mine"


def test_a_bundle_reached_by_a_link_is_changed_where_it_is(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link.bundle"
    link.symlink_to(bundle.root)
    for text in ("one", "two"):
        with Bundle.load(link).edit() as draft:
            draft.new("card.md").write_text(text)
        assert link.is_symlink()
        assert Bundle.load(bundle.root).file("card.md").read_text() == text


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"schema": 1e999}'])
def test_a_manifest_that_is_no_manifest_is_refused(content: str, bundle: Bundle) -> None:
    (bundle.root / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"is not JSON|does not say which schema|is not a valid manifest"):
        Bundle.load(bundle.root)


def _graphs(bundle: Bundle) -> set[str]:
    return {str(graph.plan) for graph in bundle.manifest.graphs.values()}


def test_a_plan_with_other_numbers_loses_the_graphs_that_were_made_of_it(digits: Bundle) -> None:
    assert _graphs(digits) == {"sid1", "sid2"}
    with digits.edit() as draft:
        draft.manifest.plans["sid1"].solver = "another word for it"
        draft.new("notes.txt").write_text("something else")
    bundle = Bundle.load(digits.root)
    assert _graphs(bundle) == {"sid1", "sid2"}
    with bundle.edit() as draft:
        draft.manifest.plans["sid1"].sigmas[0] *= 1.01
    bundle = Bundle.load(digits.root)
    assert _graphs(bundle) == {"sid2"}
    assert "sid1" not in bundle.manifest.ranges
    assert not [path for path in bundle.manifest.files if path.startswith(("graphs/sid1", "ranges/sid1"))]
    bundle.verify()


def test_a_network_with_other_weights_loses_the_graphs_that_were_made_of_it(digits: Bundle) -> None:
    (weights,) = (
        path for path in digits.manifest.files if path.startswith("components/sid1/") and path.endswith("safetensors")
    )
    content = bytearray(digits.file(weights).read_bytes())
    content[-1] ^= 1
    with digits.edit() as draft:
        draft.new(weights).write_bytes(content)
    assert _graphs(Bundle.load(digits.root)) == {"sid2"}

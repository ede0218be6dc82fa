"""Directories that are replaced as a whole: killed at every point, on mounts, where none may be written, with their modes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bundle import SIGNATURE, bundle  # noqa: F401  (a fixture)

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.staging import check_place, locked, staged
from fewstep.system.places import check_file, check_folder, writing

EVENTS = ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.chown", "open")
NAMES = ("a.bundle", ".a.bundle.new", ".a.bundle.old", ".a.bundle.lock")


def _change(root: Path, text: str) -> None:
    with Bundle.load(root).edit() as draft:
        draft.new("note.txt").write_text(text)


def killed_at(point: int, root: Path, act: Callable[[], None]) -> bool:
    """Whether a process that is killed before its so-many-th change of the file system came to that."""
    child = os.fork()
    if child == 0:
        try:
            left = point

            def look(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                if event in EVENTS and any(str(a).startswith(str(root.parent)) for a in arguments[:2]):
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), 9)

            sys.addaudithook(look)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, 9), status
    return status == 9


def _texts(root: Path) -> str:
    """What note.txt of a bundle that is whole says; "" where it has none."""
    found = Bundle.load(root)
    found.verify()
    return found.file("note.txt").read_text() if "note.txt" in found.manifest.files else ""


def test_killed_at_any_point_an_edit_leaves_one_of_the_two_bundles_and_blocks_nothing(bundle: Bundle) -> None:  # noqa: F811
    root, seen = bundle.root, set()
    shutil.copytree(root, root.parent / "kept")
    point = 0
    while True:
        came = killed_at(point, root, lambda: _change(root, "killed"))
        left = tuple(name for name in NAMES if (root.parent / name).exists())
        seen.add(left)
        assert _texts(root) in ("", "killed")
        _change(root, "again")
        assert _texts(root) == "again"
        assert {p.name for p in root.parent.iterdir()} == {"a.bundle", "kept"}, left
        if not came:
            break
        shutil.rmtree(root)
        shutil.copytree(root.parent / "kept", root)
        point += 1
    assert point > 20
    # At every stage: writing, between the two renames, cleaning.
    stages = [set(NAMES[:2]), set(NAMES[1:3]), {NAMES[0], NAMES[2]}]
    assert all(any(stage <= set(left) for left in seen) for stage in stages), seen


def test_killed_at_any_point_a_bundle_that_is_removed_then_does_not_come_back(bundle: Bundle) -> None:  # noqa: F811
    root, point = bundle.root, 0
    shutil.copytree(root, root.parent / "kept")
    while killed_at(point, root, lambda: _change(root, "killed")):
        if root.exists():
            shutil.rmtree(root)
            with pytest.raises(FileNotFoundError, match="is not a bundle"):
                Bundle.load(root)
            assert not root.exists()
            with Draft.create(root, SIGNATURE) as draft:
                draft.new("note.txt").write_text("new")
            assert _texts(root) == "new"
        else:  # it stood between its renames
            assert _texts(root) == ""
        for name in NAMES:
            shutil.rmtree(root.parent / name, ignore_errors=True)
        shutil.copytree(root.parent / "kept", root)
        point += 1
    assert point > 20


def test_killed_at_any_point_while_it_mends_what_a_kill_left(bundle: Bundle) -> None:  # noqa: F811
    root = bundle.root
    shutil.copytree(root, root.parent / "kept")
    for left in ([".a.bundle.new", ".a.bundle.old"], ["a.bundle", ".a.bundle.old"], ["a.bundle", ".a.bundle.new"]):
        point = 0
        while True:
            for name in NAMES:
                shutil.rmtree(root.parent / name, ignore_errors=True)
            for name in left:
                shutil.copytree(root.parent / "kept", root.parent / name)
            if not killed_at(point, root, lambda: _change(root, "killed")):
                break
            assert _texts(root) in ("", "killed")
            point += 1
        assert {p.name for p in root.parent.iterdir()} == {"a.bundle", "kept"}


def test_a_killed_creation_leaves_no_bundle_and_blocks_nothing(tmp_path: Path) -> None:
    root, point = tmp_path / "a.bundle", 0

    def create() -> None:
        with Draft.create(root, SIGNATURE) as draft:
            draft.new("note.txt").write_text("made")

    while killed_at(point, root, create):
        if root.exists():
            assert _texts(root) == "made"
            shutil.rmtree(root)
        create()
        assert [p.name for p in tmp_path.iterdir()] == ["a.bundle"]
        shutil.rmtree(root)
        point += 1
    assert point > 5


@pytest.mark.parametrize("name", [".a.bundle.old", ".a.bundle.new"])
@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_lies_under_the_names_of_staging_is_in_nobodys_way(name: str, kind: str, bundle: Bundle, tmp_path: Path) -> None:  # noqa: F811
    path, elsewhere = bundle.root.with_name(name), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    if kind == "directory":
        shutil.copytree(bundle.root, path)
    elif kind == "file":
        path.write_text("")
    else:
        path.symlink_to(elsewhere)
    _change(bundle.root, "changed")
    assert _texts(bundle.root) == "changed"
    assert {p.name for p in tmp_path.iterdir()} == {"a.bundle", "elsewhere"}
    assert (elsewhere / "mine").exists()


def test_a_bundle_removed_or_made_meanwhile_is_left_so(bundle: Bundle, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="was removed meanwhile"), bundle.edit():
        shutil.rmtree(bundle.root)
    assert list(tmp_path.iterdir()) == []
    made = tmp_path / "new"
    with pytest.raises(ValueError, match="was made meanwhile"), staged(made):
        made.mkdir()
        (made / "mine").touch()
    assert [p.name for p in made.iterdir()] == ["mine"]


# Modes, and what is on the disk


def test_a_lock_that_goes_while_it_is_looked_at_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between mkdir's finding that it is there and its finding that it is a directory, who held it let it go."""
    lock, mkdir, asked = tmp_path / ".a.bundle.lock", Path.mkdir, []

    def late(self: Path, *given: Any, **options: Any) -> None:
        asked.append(self)
        if asked == [lock]:
            raise FileExistsError(lock)
        mkdir(self, *given, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with locked(lock) as held:
        assert held
    assert asked == [lock, lock]
    for make in (lock.touch, lambda: lock.symlink_to(tmp_path / "nowhere")):
        make()
        with pytest.raises(FileExistsError), locked(lock):
            pass
        lock.unlink()


def test_modes_stay(bundle: Bundle) -> None:  # noqa: F811
    root = bundle.root
    with bundle.edit() as draft:
        draft.new("graphs/open").write_text("")
        draft.new("graphs/secret").write_text("")
    wanted = {
        "": 0o2750,
        "bundle.json": 0o600,
        "graphs": 0o711,
        "graphs/secret": 0o440,
        "components/teacher/config.json": 0o604,
    }
    for name, mode in wanted.items():
        (root / name).chmod(mode)
    during = []
    with Bundle.load(root).edit() as draft:
        during.append(stat.S_IMODE(draft.root.stat().st_mode))
        draft.new("graphs/secret").write_text("another")
    assert {name: stat.S_IMODE((root / name).stat().st_mode) for name in wanted} == wanted
    assert during == [0o2750]
    Bundle.load(root).verify()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_owners_stay_where_root_changes_a_users_bundle(bundle: Bundle) -> None:  # noqa: F811
    for path in (bundle.root, *bundle.root.rglob("*")):
        os.chown(path, 1234, 2345)
    _change(bundle.root, "changed")
    found = {p.relative_to(bundle.root).as_posix(): p.stat() for p in (bundle.root, *bundle.root.rglob("*"))}
    owners = {name: (about.st_uid, about.st_gid) for name, about in found.items() if name != "note.txt"}
    assert set(owners.values()) == {(1234, 2345)}


def test_everything_is_on_the_disk_before_it_takes_its_place(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    root, done = bundle.root, []
    fsync, rename, replace = os.fsync, os.rename, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(f"{a} -> {b}"), rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"{a} -> {b}"), replace(a, b))[1])
    _change(root, "changed")
    staging = root.with_name(".a.bundle.new")
    first = done.index(f"{root} -> {root.with_name('.a.bundle.old')}")
    paths = {str(staging / p.relative_to(root)) for p in (root, *root.rglob("*"))}
    assert paths <= set(done[:first])
    assert done[-1] == str(root.parent)
    done.clear()
    with writing(root.parent / "grid.png") as beside:
        beside.write_text("a picture")
    assert done == [str(beside), f"{beside} -> {root.parent / 'grid.png'}", str(root.parent)]


# Places


def alone(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Code in a process with mounts of its own, as root; skips where that is not allowed."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of its own for a process here")
    command = ["unshare", "-m", sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


TRIED = """
import json, subprocess, sys
from pathlib import Path
def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print("skip", done.stderr)
        sys.exit()
root = Path(sys.argv[1])
def tried(root=root):
    from fewstep.artifact.bundle import Bundle
    began = []
    try:
        with Bundle.load(root).edit() as draft:
            began.append(True)
            draft.new("note.txt").write_text("changed")
        Bundle.load(root).verify()
        print(json.dumps(["", bool(began)]))
    except (ValueError, OSError) as error:
        print(json.dumps([f"{type(error).__name__}: {error}", bool(began)]))
"""

MOUNTS = {
    "a bind mount of its own file system": ("run('mount', '--bind', root, root); tried()", "is a mount point"),
    "a mount inside": (
        "run('mount', '-t', 'tmpfs', 'none', root / 'components' / 'teacher'); tried()",
        "components/teacher is a mount",
    ),
    "a bind mount inside": (
        "run('mount', '--bind', root / 'components', root / 'components'); tried()",
        "components is a mount point",
    ),
    "a mounted file": (
        "run('mount', '--bind', root / 'bundle.json', root / 'bundle.json'); tried()",
        "bundle.json is a mount point",
    ),
    "a name with a space": (
        "new = root.with_name('a b.bundle'); new.mkdir(); run('mount', '--bind', root, new); tried(new)",
        "a b.bundle is a mount point",
    ),
    "a read-only parent": (
        "run('mount', '--bind', root.parent, root.parent); run('mount', '-o', 'remount,ro,bind', root.parent); tried()",
        "Read-only file system",
    ),
    "below a mount": ("run('mount', '--bind', root.parent, root.parent); tried()", ""),
    "layers that move no directory": (
        "up = root.parent / 'up'\n"
        "run('mount', '-t', 'tmpfs', 'none', up)\n"
        "for name in ('upper', 'work', 'all'): (up / name).mkdir()\n"
        "run('mount', '-t', 'overlay', 'overlay', '-o',"
        " f'lowerdir={root.parent},upperdir={up}/upper,workdir={up}/work,redirect_dir=off', up / 'all')\n"
        "tried(up / 'all' / root.name)",
        "cross-device link",
    ),
}


@pytest.mark.parametrize("name", MOUNTS)
def test_a_place_that_cannot_be_replaced_is_known_before_the_work(name: str, bundle: Bundle, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "up").mkdir()
    code, message = MOUNTS[name]
    done = alone(TRIED + code, bundle.root)
    if done.stdout.startswith("skip"):
        pytest.skip(f"not mounted here: {done.stdout}")
    assert done.stdout, done.stderr
    said, began = json.loads(done.stdout)
    assert message in said if message else said == ""
    assert began is (message == "")
    if message:
        assert {p.name for p in tmp_path.iterdir()} - {"a b.bundle"} == {"a.bundle", "up"}
        assert "note.txt" not in Bundle.load(bundle.root).manifest.files


UNPRIVILEGED = """
import os, fewstep.artifact.bundle, fewstep.artifact.golden  # which may lie where nobody else reads
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize(
    ("mode", "owner", "inner", "message"),
    [
        (0o777, 65534, 0o755, ""),
        (0o755, 65534, 0o755, "Permission denied"),  # the parent is root's
        (0o1777, 0, 0o777, "not permitted"),  # the bundle is root's, in a place like /tmp
        (0o777, 65534, 0o555, "Permission denied"),  # the bundle is not to be changed
    ],
)
def test_who_may_not_replace_a_bundle_is_told_before_the_work(
    mode: int,
    owner: int,
    inner: int,
    message: str,
    bundle: Bundle,  # noqa: F811
    tmp_path: Path,
) -> None:
    for path in tmp_path.parents[:3]:
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    tmp_path.chmod(mode)
    for path in (bundle.root, *bundle.root.rglob("*")):
        path.chmod(inner if path.is_dir() else 0o644)
        os.chown(path, owner, owner)
    code = TRIED + UNPRIVILEGED + "tried()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, bundle.root], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    said, began = json.loads(done.stdout)
    assert message in said if message else said == ""
    assert began is (message == "")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bundle"]


def test_a_place_below_a_file_or_in_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    for check in (check_place, check_folder):
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            check(tmp_path / "file" / "b.bundle")
    for check in (check_place, check_folder, check_file):
        with pytest.raises((OSError, ValueError)):
            check(tmp_path / "circle" / "b.png")


def test_a_file_that_fails_to_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    path.chmod(0o640)
    (tmp_path / "link.html").symlink_to(path)
    with pytest.raises(OSError, match="full"), writing(path) as beside:
        beside.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "before"
    with writing(tmp_path / "link.html") as beside:
        beside.write_text("after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (tmp_path / "link.html").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"page.html", "link.html"}

"""Images that were decoded once are not decoded again to be checked; and never is a changed one taken for what it was."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data import open_images, seen, survey
from fewstep.data.decode import decode
from fewstep.system.caches import default_folder

READER = """
import sys
from fewstep.data import open_images, survey
decode, count = survey.decode, []
survey.decode = lambda content: count.append(1) or decode(content)
print(open_images(sys.argv[1]).sha256, len(count))
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What is decoded while images are opened."""
    contents: list[bytes] = []
    monkeypatch.setattr(survey, "decode", lambda content: (contents.append(content), decode(content))[1])
    return contents


def folder(root: Path, count: int = 12, first: int = 0) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(first, first + count):
        Image.new("RGB", (9, 8), (i, 0, 0)).save(root / f"{i:03}.png")
    return root


def kept() -> list[Path]:
    return sorted(default_folder().glob("images-*"))


def test_images_are_decoded_when_they_are_opened_first(tmp_path: Path, decoded: list[bytes]) -> None:
    root = folder(tmp_path / "data")
    train = open_images(str(root))
    assert len(decoded) == 12
    held_out, smaller = open_images(str(root), "held-out"), open_images(str(root), resolution=4)
    assert len(decoded) == 12
    assert train.notes == held_out.notes
    assert train.sha256 == held_out.sha256 != smaller.sha256
    folder(root, 3, 12)
    assert len(open_images(str(root), "all")) == 15
    assert len(decoded) == 15
    done = subprocess.run([sys.executable, "-c", READER, root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [open_images(str(root)).sha256, "0"]


def test_rows_of_a_data_set_are_known_too(tmp_path: Path, decoded: list[bytes]) -> None:
    import datasets

    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(10)]
    data = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "a.parquet")
    hashes = {open_images(str(tmp_path / "parquet"), split).sha256 for split in ("train", "held-out", "all")}
    assert (len(decoded), len(hashes)) == (10, 1)


def test_an_edit_is_seen_whatever_the_file_says_of_its_time(tmp_path: Path, decoded: list[bytes]) -> None:
    root = folder(tmp_path / "data")
    before = open_images(str(root))
    path = root / "003.png"
    about = path.stat()
    content = bytearray(path.read_bytes())
    Image.new("RGB", (9, 8), (77, 0, 0)).save(path)
    assert path.stat().st_size == about.st_size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = open_images(str(root))
    assert after.sha256 != before.sha256
    assert after[np.array([3])][0][0, 0, 0, 0] == 77
    path.write_bytes(content)
    assert open_images(str(root)).sha256 == before.sha256
    content[50] ^= 255  # within the pixels
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(ValueError, match=r"003.png is not a readable image"):
        open_images(str(root))
    Image.new("L", (30, 40)).save(path)
    assert "1 grey, among others in color" in open_images(str(root)).notes[1]


def test_what_could_be_read_is_kept_when_another_cannot(tmp_path: Path, decoded: list[bytes]) -> None:
    root = folder(tmp_path / "data")
    (root / "x.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"x.png is not a readable image"):
            open_images(str(root))
    assert len(decoded) == 14


def test_a_damaged_or_foreign_cache_costs_time_alone(tmp_path: Path, decoded: list[bytes]) -> None:
    root = folder(tmp_path / "data")
    sha256 = open_images(str(root)).sha256
    (path,) = kept()
    whole = path.read_bytes()

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    np.save(tmp_path / "objects.npy", np.array([Harm()], object), allow_pickle=True)
    np.save(tmp_path / "other.npy", np.zeros(3))
    foreign = [(tmp_path / "objects.npy").read_bytes(), (tmp_path / "other.npy").read_bytes(), pickle.dumps(Harm())]
    for damaged in (
        b"",
        whole[:40],
        whole[:-1],
        whole[:80] + b"\0" * (len(whole) - 80),
        b"\0" * len(whole),
        whole[:-1] + b"x",
        *foreign,
    ):
        path.write_bytes(damaged)
        decoded.clear()
        assert open_images(str(root)).sha256 == sha256
        assert len(decoded) == 12
        assert path.read_bytes() == whole
    assert not (tmp_path / "harm").exists()
    assert kept() == [path]


def test_without_a_place_for_the_cache_images_open_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "data")
    sha256 = open_images(str(root)).sha256
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file" / "cache"))
    assert open_images(str(root)).sha256 == sha256
    assert "images are decoded anew each time they are opened, for lack of a cache" in capfd.readouterr().err


def test_the_cache_lies_where_caches_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_images(str(folder(tmp_path / "data")))
    assert [path.parent for path in kept()] == [tmp_path / "xdg" / "fewstep"]


def test_the_cache_is_bounded_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
) -> None:
    roots = [folder(tmp_path / str(i)) for i in range(4)]
    size = 0
    for age, root in enumerate(roots[:3]):
        open_images(str(root))
        newest = max(kept(), key=lambda path: path.stat().st_mtime_ns)
        size = newest.stat().st_size
        os.utime(newest, (age, age))
    left_over = default_folder() / "images-abc.new"  # of a process that was killed
    left_over.write_bytes(bytes(size))
    os.utime(left_over, (0, 0))
    (default_folder() / "fit-1.json").write_text("{}")
    open_images(str(roots[0]))  # now used last
    monkeypatch.setattr(seen, "MAX_BYTES", 2 * size)
    open_images(str(roots[3]))
    assert len(kept()) == 2
    assert not left_over.exists()
    assert (default_folder() / "fit-1.json").exists()
    decoded.clear()
    for root in (roots[0], roots[3]):
        open_images(str(root))
    assert not decoded


def test_processes_may_open_the_same_images_at_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", 40)
    running = [subprocess.Popen([sys.executable, "-c", READER, root], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate()[0].split()[0] for process in running}
    assert said == {open_images(str(root)).sha256}
    assert [path.suffix for path in kept()] == [".rows"]
    assert all(process.returncode == 0 for process in running)

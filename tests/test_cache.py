"""Bundles and checkpoints in a Hugging Face cache, whose files are links into a store of blobs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pipelines import CASES, save
from small_sampler import sampler_bundle
from test_cli import fewstep, refused

from fewstep.artifact.bundle import Bundle
from fewstep.models.importer import ImportOptions, import_teacher
from fewstep.runtime import Generator


def cached(source: Path, cache: Path) -> Path:
    """A directory as huggingface_hub keeps it: models--NAME/{blobs,refs,snapshots}; returns the snapshot."""
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        blob = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_bundle_in_a_cache_opens_runs_and_is_not_changed(tmp_path: Path) -> None:
    plain = sampler_bundle(tmp_path / "a.bundle")
    snapshot = cached(plain.root, tmp_path / "models--somebody--a")
    bundle = Bundle.load(snapshot)
    bundle.verify()
    wanted, found = (Generator(b, plan="one")(labels=[0, 1], seeds=[2, 3]) for b in (plain, bundle))
    np.testing.assert_array_equal(wanted, found)
    assert "lies in a cache" in refused("adopt", snapshot, "--plan", "one", "--name", "b", "--network", "net", cwd=tmp_path)
    assert all(path.is_symlink() for path in snapshot.rglob("*") if not path.is_dir())


def test_links_that_leave_the_store_and_blobs_that_changed_are_refused(tmp_path: Path) -> None:
    snapshot = cached(sampler_bundle(tmp_path / "a.bundle").root, tmp_path / "models--somebody--a")
    ranges = snapshot / "ranges.json"
    blob = ranges.resolve()
    blob.write_bytes(blob.read_bytes().replace(b"0", b"1"))
    with pytest.raises(ValueError, match=r"ranges.json does not match its sha256"):
        Bundle.load(snapshot).verify()
    for target in (tmp_path / "elsewhere.json", tmp_path / "models--somebody--a" / "refs" / "main"):
        (tmp_path / "elsewhere.json").write_text("{}")
        ranges.unlink()
        ranges.symlink_to(target)
        with pytest.raises(ValueError, match=r"ranges.json is a link"):
            Bundle.load(snapshot)


def test_a_checkpoint_in_a_cache_is_imported_by_its_snapshot_or_by_the_name_of_its_repository(tmp_path: Path) -> None:
    snapshot = cached(save(tmp_path / "dit", CASES["dit"]()), tmp_path / "models--somebody--dit")
    for i, source in enumerate((snapshot, tmp_path / "models--somebody--dit")):
        bundle, _ = import_teacher(source, tmp_path / f"{i}.bundle", ImportOptions(steps=2))
        bundle.verify()
        assert not [path for path in bundle.root.rglob("*") if path.is_symlink()]
    (tmp_path / "models--somebody--dit" / "refs" / "main").unlink()
    (tmp_path / "models--somebody--dit" / "snapshots" / "4567def").mkdir()
    assert "a cache of several versions" in refused("import", "models--somebody--dit", cwd=tmp_path)
    fewstep("import", "models--somebody--dit/snapshots/0123abc", "--steps", 2, "--out", "c.bundle", cwd=tmp_path)

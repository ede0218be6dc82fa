"""Samples shared by the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewstep.bundle import Bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits are not taken from the user's cache, nor put there."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def digits(tmp_path: Path) -> Bundle:
    """A copy of the bundle of trained digits that the repository ships."""
    shutil.copytree(ROOT / "examples" / "digits.bundle", tmp_path / "digits.bundle")
    return Bundle.load(tmp_path / "digits.bundle")

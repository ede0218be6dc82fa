"""Samples shared by the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewstep.bundle import Bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture
def digits(tmp_path: Path) -> Bundle:
    """A copy of the bundle of trained digits that the repository ships."""
    shutil.copytree(ROOT / "examples" / "digits.bundle", tmp_path / "digits.bundle")
    return Bundle.load(tmp_path / "digits.bundle")

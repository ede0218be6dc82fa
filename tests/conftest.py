"""Samples shared by the tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from fewstep.artifact.bundle import Bundle

ROOT = Path(__file__).parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background; what they start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What alone may skip where FEWSTEP_NO_SKIPS is set, as in .ci/run, which installs all else that tests ask for.
MAY_SKIP = ("without a GPU", "needs a GPU", "FEWSTEP_TRITON")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A test that should run and does not has failed."""
    if os.environ.get("FEWSTEP_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(words in reason for words in MAY_SKIP):
            report.outcome, report.longrepr = "failed", f"nothing may skip here, and this did: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits are not taken from the user's cache, nor put there."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def digits(tmp_path: Path) -> Bundle:
    """A copy of the bundle of trained digits that the repository ships."""
    shutil.copytree(ROOT / "examples" / "digits.bundle", tmp_path / "digits.bundle")
    return Bundle.load(tmp_path / "digits.bundle")

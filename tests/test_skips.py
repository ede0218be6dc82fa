"""In .ci/run a test that skips has failed: what it asks for is to be installed there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

WANTS = {
    "a program": "import pytest\ndef test_it(): pytest.skip('needs Chromium')",
    "a mark": "import pytest\n@pytest.mark.skipif(True, reason='needs Node')\ndef test_it(): pass",
    "a package": "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass",
    "a GPU": "import pytest\ndef test_it(): pytest.skip('needs a GPU')",
}


@pytest.mark.parametrize("wanted", WANTS)
def test_nothing_but_a_gpu_may_be_wanting(wanted: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(WANTS[wanted])
    (tmp_path / "test_other.py").write_text("def test_that_runs(): pass")
    for variable, code in (("", 0), ("1", 0 if wanted == "a GPU" else 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
        done = subprocess.run(command, env=os.environ | {"FEWSTEP_NO_SKIPS": variable}, capture_output=True, text=True)
        assert (done.returncode != 0) == code, done.stdout
        assert ("1 skipped" in done.stdout) == (not code)
        assert ("nothing may skip here" in done.stdout) == bool(code)

"""The wheel, built through the sdist, in an environment with the runtime's dependencies alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_built_wheel_makes_images_with_the_runtimes_dependencies_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for module in (
        "sampling/plan",
        "artifact/bundle",
        "trainer/sid",
        "calibration/iia",
        "exporter/graph/layouts",
        "runtime/generator",
    ):
        assert f"fewstep/{module}.py" in names
    data = {"py.typed", "style.css", "exporter/edge/page/index.html", "runtime/server/page/playground.js"}
    assert {f"fewstep/{name}" for name in data} <= set(names)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    requirement = f"{wheel}[cpu]"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, requirement], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    assert "torch" not in installed
    assert "rich" not in installed
    code = (
        "from fewstep.runtime import Generator\n"
        f"images = Generator.open({str(ROOT / 'examples' / 'digits.bundle')!r})(labels=[3], seeds=[0])\n"
        "assert images.shape == (1, 28, 28, 1) and images.std() > 30"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
    command = subprocess.run([tmp_path / "venv" / "bin" / "fewstep"], capture_output=True, text=True, check=False)
    assert 'pip install ".[cli]"' in command.stderr

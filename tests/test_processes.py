"""Two processes train and distil the weights of one, up to the rounding of a sum in another order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = """
import sys; from pathlib import Path
import numpy as np, torch
from fewstep.manifest import Condition, ImageSpec
from fewstep.data import Images
from fewstep.trainer.sid import SidConfig, distill
from fewstep.trainer.teacher import TeacherConfig, train_teacher

torch.set_num_threads(1)
images = Images("made up", ImageSpec(channels=1, height=8, width=8), Condition(kind="labels", classes=2),
    np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32), np.arange(32) % 2)
config = TeacherConfig(steps=5, warmup=1, batch=4, lr=1e-4, channels=(8,), patch=1, precision="no")
bundle = train_teacher(Path(sys.argv[1]), images, config)
distill(bundle, "sid2", SidConfig(steps=2, iterations=3, batch=4, lr=1e-5, guidance=1.5, precision="no"))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def _weights(bundle: Path, network: str) -> dict:
    (path,) = (bundle / "networks" / network).glob("*.safetensors")
    return load_file(path)


def test_two_processes_give_the_update_of_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    for processes in (1, 2):
        command = [*launch, "--num_processes", str(processes), str(script), str(tmp_path / f"{processes}.bundle")]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    for network in ("teacher", "sid2"):
        one, two = (_weights(tmp_path / f"{n}.bundle", network) for n in (1, 2))
        assert one.keys() == two.keys()
        largest = max(float((one[name] - two[name]).abs().max()) for name in one)
        assert largest < 2e-5, f"{network}: {largest}"
    moved = max(float((one[n] - _weights(tmp_path / "1.bundle", "teacher")[n]).abs().max()) for n in one)
    assert moved > 1e-5  # else equal weights would prove nothing

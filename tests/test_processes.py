"""Two processes, or a batch in two parts, train and distil the weights of one.

Up to the rounding of a sum in another order. Networks are in float64: Adam makes rounding as large as anything where a gradient
should be 0.
"""

from __future__ import annotations

from pathlib import Path

from processes import run_in_processes
from safetensors.torch import load_file

SCRIPT = """
from pathlib import Path
import numpy as np
from fewstep.manifest import Condition, ImageSpec
from fewstep.data import Images
from fewstep.trainer.sid import distill
from fewstep.trainer.sid_config import SidConfig
from fewstep.trainer.teacher import TeacherConfig, train_teacher

torch.set_default_dtype(torch.float64)
images = Images("made up", ImageSpec(channels=1, height=8, width=8), Condition(kind="labels", classes=2),
    np.random.default_rng(int(sys.argv[4])).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32), np.arange(32) % 2)
parts = {"accumulate": int(sys.argv[2]), "checkpointing": sys.argv[2] != "1"}
config = TeacherConfig(steps=5, warmup=1, batch=4, lr=float(sys.argv[3]), channels=(8,), patch=1, precision="no", **parts)
bundle = train_teacher(Path(sys.argv[1]), images, config)
config = SidConfig(steps=2, iterations=4, batch=4, lr=float(sys.argv[3]) / 10, guidance=1.5, adversarial_from=0.5,
    precision="no", **parts)
distill(bundle, "sid2", config, images=images)
"""


# Processes, parts of each one's share, learning rate, which images.
RUNS = {
    "one": (1, 1, 1e-4, 0),
    "still": (1, 1, 0.0, 0),
    "other": (1, 1, 1e-4, 1),
    "two": (2, 1, 1e-4, 0),
    "parts": (1, 2, 1e-4, 0),
    "both": (2, 2, 1e-4, 0),
}


def _weights(bundle: Path, network: str) -> dict:
    (path,) = (bundle / "networks" / network).glob("*.safetensors")
    return load_file(path)


def test_processes_and_parts_give_the_update_of_one(tmp_path: Path) -> None:
    for name, (processes, *settings) in RUNS.items():
        run_in_processes(processes, SCRIPT, tmp_path, tmp_path / f"{name}.bundle", *settings)
    teachers, students = ({name: _weights(tmp_path / f"{name}.bundle", n) for name in RUNS} for n in ("teacher", "sid2"))
    for begun, ended in ((dict.fromkeys(RUNS, teachers["still"]), teachers), (teachers, students)):
        updates = {name: {key: ended[name][key] - begun[name][key] for key in ended[name]} for name in RUNS}
        moved = _length(updates["one"], updates["still"])
        apart = {name: _length(updates["one"], updates[name]) / moved for name in RUNS}
        assert apart["other"] > 0.05  # else being near would prove nothing
        assert max(apart[name] for name in ("two", "parts", "both")) < 1e-4, apart


def _length(one: dict, other: dict) -> float:
    """Of the difference of two updates."""
    return sum(float((one[key] - other[key]).double().square().sum()) for key in one) ** 0.5

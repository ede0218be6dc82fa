"""Two processes, or a batch in two parts, train and distil the weights of one.

Up to the rounding of a sum in another order. Networks are in float64: Adam makes rounding as large as anything where a gradient
should be 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from processes import run_in_processes
from safetensors.torch import load_file

from fewstep.artifact.bundle import Bundle

SCRIPT = """
import json
import os
import subprocess
import sys
from pathlib import Path
from dataclasses import replace
import numpy as np
import pytest
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.data import Images
from fewstep.trainer import checkpoint
from fewstep.trainer.sid import distill
from fewstep.trainer.configs import SidConfig, TeacherConfig
from fewstep.trainer.teacher import train_teacher

torch.set_default_dtype(torch.float64)
stopping = len(sys.argv) > 3
if stopping:
    save = checkpoint.save
    def save_and_stop(*arguments, **settings):
        save(*arguments, **settings)
        sys.exit(0)
    checkpoint.save = save_and_stop
for name, processes, accumulate, lr, seed, shard in json.loads(sys.argv[2]):
    signature = Signature(inputs=(LabelInput(classes=2),), output=ImageOutput(channels=1, height=8, width=8))
    images = Images("made up", signature,
        np.random.default_rng(seed).integers(0, 255, (32, 8, 8, 1), np.uint8), np.arange(32), np.arange(32) % 2)
    parts = {"accumulate": accumulate, "checkpointing": accumulate != 1, "shard": shard}
    config = TeacherConfig(iterations=5, warmup=1, batch=4, lr=lr, channels=(8,), patch=1, mixed_precision="no",
        checkpoint_every=3 if stopping else 200, **parts)
    if processes == 2 and not stopping:
        with pytest.raises(ValueError, match="5 samples do not come apart into"):
            train_teacher(Path(sys.argv[1], "uneven.bundle"), images, replace(config, batch=5, accumulate=1))
    bundle = train_teacher(Path(sys.argv[1], f"{name}.bundle"), images, config)
    config = SidConfig(steps=2, iterations=4, batch=4, lr=lr / 10, guidance=1.5, adversarial_from=0.5,
        mixed_precision="no", **parts)
    if processes == 2 and not stopping:
        with pytest.raises(ValueError, match="5 samples do not come apart into"):
            distill(bundle, "uneven", replace(config, batch=5, accumulate=1), samples=images)
    distill(bundle, "sid2", config, samples=images)
"""


# Name, processes, parts of each one's share, learning rate, which images, whether weights lie in shares.
RUNS = [
    ("fewer", 1, 1, 1e-4, 0, False),
    ("one", 1, 1, 1e-4, 0, False),
    ("still", 1, 1, 0.0, 0, False),
    ("other", 1, 1, 1e-4, 1, False),
    ("parts", 1, 2, 1e-4, 0, False),
    ("two", 2, 1, 1e-4, 0, False),
    ("both", 2, 2, 1e-4, 0, False),
    ("shares-and-parts", 2, 2, 1e-4, 0, True),
]


def _weights(bundle: Path, network: str) -> dict:
    (path,) = (bundle / "components" / network).glob("*.safetensors")
    return load_file(path)


def test_processes_and_parts_give_the_update_of_one(tmp_path: Path) -> None:
    # One begins as shares of two processes and ends whole, in one.
    run_in_processes(2, SCRIPT, tmp_path, tmp_path, json.dumps([["fewer", 2, 1, 1e-4, 0, True]]), "stop")
    assert (tmp_path / "fewer.bundle.teacher.checkpoint").is_dir()
    for processes in (1, 2):
        run_in_processes(processes, SCRIPT, tmp_path, tmp_path, json.dumps([run for run in RUNS if run[1] == processes]))
    names = [name for name, *_ in RUNS]
    teachers, students = ({name: _weights(tmp_path / f"{name}.bundle", n) for name in names} for n in ("teacher", "sid2"))
    for begun, ended in ((dict.fromkeys(names, teachers["still"]), teachers), (teachers, students)):
        updates = {name: {key: ended[name][key] - begun[name][key] for key in ended[name]} for name in names}
        moved = _length(updates["one"], updates["still"])
        apart = {name: _length(updates["one"], updates[name]) / moved for name in names}
        assert apart["other"] > 0.05  # else being near would prove nothing
        assert max(apart[name] for name in names if name not in ("still", "other")) < 1e-4, apart


def _length(one: dict, other: dict) -> float:
    """Of the difference of two updates."""
    return sum(float((one[key] - other[key]).double().square().sum()) for key in one) ** 0.5


COMMAND = """
import torch.distributed
from fewstep.cli import main
try:
    main()
finally:
    assert not torch.distributed.is_initialized()  # else gloo's threads abort the process now and then
"""


def test_the_command_under_torchrun_speaks_once_and_writes_one_bundle(tmp_path: Path) -> None:
    """With curves and sheets, from weights in shares."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "command.py",
    ]
    (tmp_path / "command.py").write_text(COMMAND)
    options = [
        "train",
        "--iterations",
        "2",
        "--batch",
        "4",
        "--shard",
        "--mixed-precision",
        "no",
        "--out",
        "a.bundle",
        "--log-to",
        "log",
        "--json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["networks"] == ["teacher"]
    assert done.stderr.count("train teacher: done") == 1
    Bundle.load(tmp_path / "a.bundle").verify()
    assert (tmp_path / "log" / "teacher-000002.png").is_file()
    assert list((tmp_path / "log" / "teacher").glob("events.*"))


QUOTA = """
import torch
torch.set_num_threads(3)
import fewstep.system.cores
fewstep.system.cores.quota = lambda: 1.0  # as in a container with one core of many
import fewstep.system.processes
fewstep.system.processes.keep_to_own_cores()
assert torch.get_num_threads() == 1
torch.set_num_threads(2)
fewstep.system.processes.keep_to_own_cores()
assert torch.get_num_threads() == 2  # which somebody wanted
"""


def test_torch_takes_no_more_threads_than_the_quota_pays_for() -> None:
    subprocess.run([sys.executable, "-c", QUOTA], check=True, timeout=100)


def test_figures_are_said_to_be_of_the_cores_they_were_made_with() -> None:
    """Under taskset, as a comparison on one core of many: its timings are not those of all."""
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nfrom fewstep.system.machine import described\n"
    subprocess.run([sys.executable, "-c", code + "assert described()['cores'] == 1, described()"], check=True, timeout=100)

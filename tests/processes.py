"""Scripts run by one process or several, as `torchrun` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PREFIX = """
import os, sys
import torch
from accelerate import PartialState
torch.set_num_threads(1)
from fewstep.system.processes import several_on_cpu
assert PartialState(cpu=several_on_cpu()).num_processes == int(os.environ["WANTED_PROCESSES"])  # else nothing would be compared
"""
SUFFIX = """
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def run_in_processes(count: int, script: str, directory: Path, *arguments: object) -> None:
    """Run a script on the CPU with so many processes; it gets the arguments."""
    path = directory / f"run-{count}.py"
    path.write_text(PREFIX + script + SUFFIX)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANTED_PROCESSES": str(count)}
    done = subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

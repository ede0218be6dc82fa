"""Cores that a process may use: what the system says of it, in its own words, and for this process."""

from __future__ import annotations

import os
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from fewstep.system.cores import quota, usable_cores

ONE_CGROUP2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
CPU_AND_OTHERS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def _v1(folder: str, quota_us: str, period_us: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota_us}\n", f"{folder}/cpu.cfs_period_us": f"{period_us}\n"}


SYSTEMS = {
    "no cgroups": ({}, inf),
    "version 2, no limit": (
        {"proc/self/mountinfo": ONE_CGROUP2, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"},
        inf,
    ),
    "version 2, as a container sees its own": (
        {"proc/self/mountinfo": ONE_CGROUP2, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "version 2, the slice around it is narrower": (
        {
            "proc/self/mountinfo": ONE_CGROUP2,
            "proc/self/cgroup": "0::/user.slice/a b.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/user.slice/a b.scope/cpu.max": "max 100000\n",
        },
        2.0,
    ),
    "version 1": (
        {"proc/self/mountinfo": CPU_AND_OTHERS.format(top="/"), "proc/self/cgroup": "4:memory:/m\n1:cpu,cpuacct:/a\n"}
        | _v1("sys/fs/cgroup/cpu,cpuacct/a", "300000", "50000")
        | _v1("sys/fs/cgroup/cpu,cpuacct", "-1", "100000"),
        6.0,
    ),
    "version 1, a container told the host's path": (
        {"proc/self/mountinfo": CPU_AND_OTHERS.format(top="/docker/c"), "proc/self/cgroup": "1:cpu,cpuacct:/docker/c\n"}
        | _v1("sys/fs/cgroup/cpu,cpuacct", "50000", "100000"),
        0.5,
    ),
    "version 1, a path from outside of what is mounted": (
        {"proc/self/mountinfo": CPU_AND_OTHERS.format(top="/docker/c"), "proc/self/cgroup": "1:cpu,cpuacct:/kube/x\n"}
        | _v1("sys/fs/cgroup/cpu,cpuacct", "400000", "100000"),
        4.0,
    ),
}


@pytest.mark.parametrize(("files", "cores"), SYSTEMS.values(), ids=SYSTEMS)
def test_a_quota_is_read_from_either_version_of_cgroups(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    assert quota(_write(tmp_path, files)) == cores


def test_a_process_counts_the_cores_it_is_bound_to() -> None:
    code = "import os; os.sched_setaffinity(0, {%d}); from fewstep.system.cores import usable_cores; print(usable_cores())"
    one = min(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-c", code % one], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 1
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))

"""How many cores this process may use: by its affinity and its cgroup's quota, not by what the host has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf
from pathlib import Path, PurePosixPath

__all__ = ["quota", "usable_cores"]


def usable_cores() -> int:
    """Cores, not hyperthreads, that this process may run on, and no more than its quota pays for; at least 1."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(1, int(min(len({_core(cpu) for cpu in cpus}), quota())))


def quota(root: Path = Path("/")) -> float:
    """Seconds of CPU a second that the cgroups of this process allow, infinity without a limit. root: of /proc and /sys.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), https://docs.kernel.org/scheduler/sched-bwc.html (version 1).
    """
    return min((_allowed(group) for group in _groups(root)), default=inf)


def _core(cpu: int) -> tuple[str, ...]:
    """What hyperthreads of one core have in common; where the system does not say, every CPU is a core."""
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return tuple((folder / name).read_text("utf-8").strip() for name in ("physical_package_id", "die_id", "core_id"))
    except OSError:
        return (str(cpu),)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the cgroups that this process is in, of either version, with those around them."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            top, folder = before.split()[3:5]
            mounts[kind] = top, root / folder.lstrip("/")
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        version = "cgroup2" if number == "0" else "cgroup" if "cpu" in controllers.split(",") else ""
        if version in mounts:
            top, point = mounts[version]
            # A container may see its own group as the top, and be told a path that is not there.
            inside = PurePosixPath(path).relative_to(top) if PurePosixPath(path).is_relative_to(top) else PurePosixPath()
            for group in (inside, *inside.parents):
                yield point / group


def _allowed(group: Path) -> float:
    """A cgroup's quota over its period."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text("utf-8").split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text("utf-8").strip() for name in ("quota", "period"))
    except OSError:  # the top has no limit
        return inf
    return inf if limit in ("max", "-1") else int(limit) / int(period)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []

"""What of the machine this process has: whether others share its work, and how many cores torch may take. Needs torch."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from fewstep.system.cores import usable_cores

__all__ = ["keep_to_own_cores", "leave", "several_on_cpu"]

log = logging.getLogger(__name__)


def several_on_cpu() -> bool:
    """Whether torchrun or accelerate started several processes on a machine without an accelerator.

    accelerate must be told: by itself it takes each for the only one there, and all would write the same bundle.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def leave() -> None:
    """Part from the other processes of a run that is done; the threads that talk to them may abort an interpreter that ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@cache  # what is set afterwards is meant
def keep_to_own_cores() -> None:
    """Let torch compute in no more threads than this process has cores.

    By itself it takes those of the host, also where a quota pays for one: threads then wait for each other.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > cores:
        torch.set_num_threads(cores)
        log.info("torch computes in %d of %d threads, for this process may use no more cores", cores, threads)

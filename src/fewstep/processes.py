"""Whether this process is one of several. Needs torch."""

from __future__ import annotations

import os

import torch

__all__ = ["leave", "several_on_cpu"]


def several_on_cpu() -> bool:
    """Whether torchrun or accelerate started several processes on a machine without an accelerator.

    accelerate must be told: by itself it takes each for the only one there, and all would write the same bundle.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def leave() -> None:
    """Part from the other processes of a run that is done; the threads that talk to them may abort an interpreter that ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

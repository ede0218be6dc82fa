"""Networks in shares: every process holds a part of every weight and gathers a block while it computes it (FSDP2).

Zhao et al. 2023 (arXiv 2304.11277). The copies of a run are shared out alike, so that averages and optimizers see parts that
belong together. Whatever walks such a network is walked by every process, for the others lack its parts.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from fewstep.models.denoiser import Denoiser

__all__ = ["gathered", "is_sharded", "prepared", "shard"]


def shard(accelerator: Accelerator, net: nn.Module) -> None:
    """Keep this process's share of a network's weights, on its device. Blocks are gathered one by one, then the rest.

    Args:
        accelerator: of the run, with several processes.
        net: it is changed, and must not have an optimizer yet.

    Raises:
        ValueError: where there is one process alone.
    """
    if accelerator.num_processes == 1:
        raise ValueError("one process has no others to share a network with; start several with accelerate launch or torchrun")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    lists = (part for part in net.modules() if isinstance(part, nn.ModuleList))
    blocks = [block for part in lists for block in part.children() if any(block.children())]
    for block in (*reversed(blocks), net):  # those within others first
        fully_shard(block, mesh=mesh)


def is_sharded(net: nn.Module) -> bool:
    """Whether a network lies in shares."""
    return isinstance(net, FSDPModule)


def prepared(accelerator: Accelerator, net: nn.Module) -> Any:
    """What training calls, with the weights of `net`: gradients come together, and it computes in the run's precision.

    Args:
        accelerator: of the run.
        net: placed on its device, or in shares.
    """
    if not is_sharded(net):
        return accelerator.prepare(net)
    net.forward = accelerator.autocast()(net.forward)
    return net


def gathered(denoiser: Denoiser, blank: Denoiser) -> Denoiser:
    """A network with all its weights, on the CPU of the main process; what other processes get is empty.

    Every process calls this.

    Args:
        denoiser: as it is where it is not in shares.
        blank: of the same architecture, on the meta device; it gets the weights.
    """
    if not is_sharded(denoiser):
        return denoiser
    state = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        blank.load_state_dict(state, assign=True)
    return blank

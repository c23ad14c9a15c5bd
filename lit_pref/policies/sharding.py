"""Fully sharded policies (FSDP2): sharding, gathering once to decode, whole weights to export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["full_state", "gathered", "is_sharded", "shard"]


def shard(policy: nn.Module, mesh: Any) -> None:
    """Shard a policy's parameters over the processes of a mesh, layer by layer.

    The layers are the longest ``ModuleList`` of the model; what is left (embeddings, last norm,
    output layer) belongs to the policy itself, whose own forward gathers it.

    Args:
        policy: with its weights loaded.
        mesh: one-dimensional device mesh.
    """
    from torch.distributed.fsdp import fully_shard

    lists = [m for m in policy.modules() if isinstance(m, nn.ModuleList)]
    for layer in max(lists, key=len, default=nn.ModuleList()):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def is_sharded(module: Any) -> bool:
    """Whether a module was given to ``shard``."""
    return isinstance(module, nn.Module) and bool(_blocks(module))


@contextlib.contextmanager
def gathered(module: Any) -> Iterator[None]:
    """Whole parameters for the time of a block; nothing is done for a module that is not sharded.

    Processes may run different numbers of forwards inside: none of them communicates.
    """
    blocks = _blocks(module) if isinstance(module, nn.Module) else []
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.reshard()
            block.set_reshard_after_forward(block is not module, recurse=False)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Whole weights on the host; of a sharded module, on rank 0 alone (all processes must call)."""
    if not is_sharded(module):
        return dict(module.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(module, options=options)
    return state


def _blocks(module: nn.Module) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [m for m in module.modules() if isinstance(m, FSDPModule)]

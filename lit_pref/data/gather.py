"""Sharing a round between processes: each does its stride, all hold the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from lit_pref.types import Round, RoundClient, View

__all__ = ["annotate_over_processes", "gather_strided", "stride"]

Item = TypeVar("Item")


def stride(items: list[Item], rank: int, world: int) -> list[Item]:
    """The items of one process: every ``world``-th."""
    return items[rank::world]


def gather_strided(mine: list[Item], world: int) -> list[Item]:
    """All items in order, from each process's stride."""
    if world == 1:
        return mine
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, mine)
    out: list[Any] = [None] * sum(len(p) for p in parts)
    for rank, part in enumerate(parts):
        out[rank::world] = part
    return out


def annotate_over_processes(
    client: RoundClient,
    round: Round,
    trainer: Any,
    micro_batch_tokens: int | None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> View:
    """Notes over the kept responses of the whole round; each process computes its stride.

    Args:
        client: computes them.
        round: its groups.
        trainer: knows the processes.
        micro_batch_tokens: budget of one forward.
        progress: told (responses done, responses in all) of this process, where the client's
            forward has an attribute of this name.
    """
    rank, world = trainer.global_rank, trainer.world_size
    forward: Any = client.forward_pass(micro_batch_tokens)
    if hasattr(forward, "progress"):
        forward.progress = progress
    if world == 1:
        return client.annotate(round, forward)
    groups = list(range(len(round.groups)))[rank::world]
    local = Round(
        index=round.index,
        groups=[round.groups[g] for g in groups],
        keep=[round.keep[g] for g in groups],
        strict=round.strict,
    )
    notes = client.annotate(local, forward)
    lengths = local.tokens().lengths
    per_group: list[dict[str, Any]] = []
    start = 0
    for keep in local.keep:
        count = sum(keep)
        part = notes.select(range(start, start + count), lengths)
        per_group.append({"token": part.token, "response": part.response})
        start += count
    everything = gather_strided(per_group, world)
    out = View()
    for kind in ("token", "response"):
        for name in everything[0][kind]:
            getattr(out, kind)[name] = torch.cat([g[kind][name] for g in everything])
    return out

"""A task's offline data as stored groups; a bandit's are sampled from the initial policy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lit_pref.data.stored import StoredGroups
from lit_pref.data.streams import PromptStream
from lit_pref.functional.rng import Order
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Refusal

if TYPE_CHECKING:
    from lit_pref.data.datamodule import RoundDataModule

__all__ = ["check_held_out", "round_size", "sample_stored", "split_held_out", "task_set"]

log = logging.getLogger(__name__)


def check_held_out(share: float) -> None:
    """Raise where it is not a share.

    Raises:
        Refusal: not a share in [0, 1).
    """
    if not 0 <= share < 1:
        raise Refusal(f"data.held_out is a share in [0, 1), got {share}; 0 holds none out")


def split_held_out(
    groups: Sequence[Group], share: float
) -> tuple[Sequence[Group], Sequence[Group]]:
    """Groups to train on, and the share from the end that is not; at least one of it."""
    check_held_out(share)
    if share == 0:
        return groups, []
    count = max(1, round(share * len(groups)))
    return groups[:-count], groups[-count:]


def round_size(
    wanted: int | Literal["all"], size: int, batch_size: int, *, what: str
) -> tuple[int, int]:
    """Groups of a round of a stored set, and how many of the set are left out.

    Args:
        wanted: a number, or ``all``: as many whole batches as there are.
        size: groups of the set.
        batch_size: groups of a batch.
        what: the set, for the message.

    Raises:
        Refusal: fewer groups than a batch has.
    """
    if isinstance(batch_size, int) and 0 < size < batch_size:
        raise Refusal(
            f"{what} has {size} groups, fewer than data.batch_size={batch_size}; "
            f"use data.batch_size={size} or less, or more data"
        )
    if wanted != "all":
        return wanted, 0
    whole = size // batch_size * batch_size
    if size > whole:
        log.info(
            "%s: %d of %d groups are left out of each round, which is whole batches of "
            "data.batch_size=%d; one that divides %d uses all",
            *(what, size - whole, size, batch_size, size),
        )
    return whole, size - whole


def task_set(
    task: Task, *, source: str, seed: int, order: Order, held_out: float = 0.0
) -> StoredGroups:
    """The task's offline data.

    Args:
        task: the task.
        source: of the run, for the message.
        seed: of the order of rows.
        order: of rows.
        held_out: share that is never trained on.

    Raises:
        Refusal: the task has none.
    """
    check_held_out(held_out)
    groups = task.offline()
    if groups is None and not task.offline_prompts:
        raise Refusal(
            f"task {task.name!r} has no offline data, which data={source} needs; give "
            "task.pairs=FILE (JSONL with prompt, chosen, rejected) or use data=onpolicy"
        )
    if groups is None:
        return StoredGroups(None, size=task.offline_prompts, seed=seed, order=order)
    kept, held = split_held_out(groups, held_out)
    return StoredGroups(kept, size=len(kept), seed=seed, order=order, held_out=held)


def sample_stored(data: RoundDataModule, *, held_out: float = 0.0) -> None:
    """Sample a set that no file has, once, from the initial policy; counted like any samples.

    Args:
        data: with a set that is to be sampled.
        held_out: above 0: all validation prompts too, never trained on; they count as evaluation.
    """
    stored = data.stored
    assert stored is not None
    if stored.groups is not None:
        return
    if held_out > 0:
        stored.held_out = data.held_out_groups = _sample_held_out(data)
    stream = PromptStream(prompts=data.task.prompts(), seed=data.seed, order=data.prompt_order)
    prompts = stream.round(0, stored.size)
    stored.groups = data.sample(prompts, ("offline",), index=0, version=0, source="offline")


def _sample_held_out(data: RoundDataModule) -> list[Group]:
    before, sampled = dict(data.counters), list(data.newly_sampled)
    groups = data.sample(
        data.validation_prompts, ("held_out",), index=0, version=0, source="offline"
    )
    queries = data.counters["reward_queries"] - before["reward_queries"]
    data.counters = {**before, "eval_queries": before["eval_queries"] + queries}
    data.newly_sampled = sampled
    return groups

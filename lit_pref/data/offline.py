"""A stored set of groups: the same loop with the sampler replaced by the set."""

from __future__ import annotations

from typing import Any, Literal

from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.task_set import round_size, sample_stored, task_set
from lit_pref.functional.rng import Order
from lit_pref.tasks.base import Task
from lit_pref.types import Group, RoundClient

__all__ = ["OfflineDataModule"]


class OfflineDataModule(RoundDataModule):
    """``data=offline``: the task's stored preference data.

    A bandit task has no file; its offline data are ``task.offline_prompts`` groups sampled once
    from the initial policy and scored by the reward.

    Args:
        task: must have offline data.
        prompts_per_round: groups of a round: ``"all"`` makes the whole set one round with
            ``reuse`` passes, as in the paper; a number takes the next groups of the shuffled set.
        batch_size: groups per optimizer step. With ``"all"`` a set that it does not divide loses
            its last few groups, another few in every run seed; they are counted and logged.
        held_out: share of the stored groups, from the end, that is never trained on, at least
            one group (``held_out_groups``; reward models are measured on them). Of a bandit,
            whose data is sampled, all validation prompts with fresh responses instead. 0: none.
        seed: see ``RoundDataModule``.
        prompt_order: of rows; see ``RoundDataModule``.
        *args: see ``RoundDataModule``.
    """

    source = "offline"

    def __init__(
        self,
        task: Task,
        *,
        prompts_per_round: int | Literal["all"] = "all",
        batch_size: int,
        held_out: float = 0.0,
        seed: int = 0,
        prompt_order: Order = "shuffled",
        **rest: Any,
    ) -> None:
        stored = task_set(
            task, source=self.source, seed=seed, order=prompt_order, held_out=held_out
        )
        size, left_out = round_size(
            prompts_per_round, stored.size, batch_size, what="the offline set"
        )
        super().__init__(
            task,
            prompts_per_round=size,
            batch_size=batch_size,
            seed=seed,
            prompt_order=prompt_order,
            **rest,
        )
        self.stored, self.left_out, self.held_out = stored, left_out, held_out
        self.fresh_groups = 0
        self.held_out_groups = stored.held_out

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        sample_stored(self, held_out=self.held_out)
        assert self.stored is not None
        self.round_counts["data/left_out"] = float(self.left_out)
        return self.stored.take(self.stored_rows(index))

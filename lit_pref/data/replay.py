"""Samples of an earlier run, trained on again, also by another objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.replay_file import read_samples
from lit_pref.data.stored import StoredGroups
from lit_pref.data.task_set import round_size, split_held_out
from lit_pref.functional.rng import Order
from lit_pref.tasks.base import Task
from lit_pref.types import Group, RewardSource, RoundClient, Sampler

__all__ = ["ReplayDataModule"]


class ReplayDataModule(RoundDataModule):
    """``data=replay``: the groups of a ``samples.jsonl``, with the rewards that they have.

    Nothing is sampled for training and no reward is asked; validation does both, as ever. A group
    keeps its round, policy version, sampling settings and reward source; its age counts from the
    start of this run, since the versions are those of another run. Checkpoints hold row ids.

    Args:
        task: its prompts are validated on; its tokens must be those of the file.
        path: a ``samples.jsonl``, or the run directory that holds one.
        prompts_per_round: groups of a round; ``"all"``: see ``OfflineDataModule``.
        batch_size: groups per optimizer step.
        sampler: only for validation.
        reward: only for validation, where the task has no true reward.
        held_out: share of the groups, from the end, that is never trained on.
        vocab_size: number of tokens that the model knows; None: not checked.
        seed: see ``RoundDataModule``.
        prompt_order: of groups; see ``RoundDataModule``.
        *args: see ``RoundDataModule``.

    Raises:
        Refusal: the file cannot be read, is not what it should be, or is of other tokens.
    """

    source = "replay"

    def __init__(
        self,
        task: Task,
        *,
        path: str | Path,
        prompts_per_round: int | Literal["all"] = "all",
        batch_size: int,
        sampler: Sampler | None = None,
        reward: RewardSource | None = None,
        held_out: float = 0.0,
        vocab_size: int | None = None,
        seed: int = 0,
        prompt_order: Order = "shuffled",
        **rest: Any,
    ) -> None:
        groups = read_samples(path, task=task, vocab_size=vocab_size)
        kept, held = split_held_out(groups, held_out)
        size, left_out = round_size(prompts_per_round, len(kept), batch_size, what=str(path))
        rest.setdefault("responses_per_prompt", max(len(g.responses) for g in kept or groups))
        super().__init__(
            task,
            sampler=sampler,
            reward=reward,
            prompts_per_round=size,
            batch_size=batch_size,
            seed=seed,
            prompt_order=prompt_order,
            **rest,
        )
        self.stored = StoredGroups(
            kept, size=len(kept), seed=seed, order=prompt_order, held_out=held
        )
        self.path, self.left_out = path, left_out
        self.fresh_groups = 0
        self.held_out_groups = self.stored.held_out

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        assert self.stored is not None
        self.round_counts["data/left_out"] = float(self.left_out)
        return self.stored.take(self.stored_rows(index))

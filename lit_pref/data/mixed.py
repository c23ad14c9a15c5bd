"""Fresh samples and stored groups side by side in every batch."""

from __future__ import annotations

from typing import Any

from lit_pref.data.checks import fresh_per_batch, need_reward
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.fresh import FreshGroups
from lit_pref.data.refill import NoSignal
from lit_pref.data.task_set import sample_stored, task_set
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Refusal, RewardSource, RoundClient

__all__ = ["MixedDataModule"]


class MixedDataModule(RoundDataModule):
    """``data=mixed``: of every batch a fixed share is sampled from the policy.

    The rest are the task's offline data, as for ``OfflineDataModule``. Prompts, rows and the
    order within a pass are permuted separately for the two, so that a fraction of 1 or 0 gives
    bitwise the weights of ``OnPolicyDataModule`` or ``OfflineDataModule`` of the same sizes.

    Args:
        task: with offline data, unless the fraction is 1.
        reward: what scores samples; required unless the fraction is 0.
        batch_size: groups per optimizer step.
        onpolicy_fraction: share of fresh groups in each batch, in [0, 1]; this times
            ``batch_size`` must be whole.
        no_signal: see ``OnPolicyDataModule``; of the fresh groups.
        refill_limit: see ``OnPolicyDataModule``; None: as many as a round has fresh groups.
        *args: see ``RoundDataModule``.

    Raises:
        Refusal: a fraction that does not fit, no offline data, no reward.
    """

    source = "mixed"

    def __init__(
        self,
        task: Task,
        *,
        reward: RewardSource | None,
        batch_size: int,
        onpolicy_fraction: float = 0.5,
        no_signal: NoSignal = "keep",
        refill_limit: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(task, reward=reward, batch_size=batch_size, **sizes)
        self.onpolicy_fraction = onpolicy_fraction
        share = fresh_per_batch(onpolicy_fraction, batch_size)
        self.fresh_groups = share * self.batches_per_pass
        if share and reward is None:
            raise need_reward(self.source)
        if share < batch_size:
            self.stored = task_set(
                task, source=self.source, seed=self.seed, order=self.prompt_order
            )
            if self.stored.size < batch_size - share:
                raise Refusal(
                    f"the offline set has {self.stored.size} groups, fewer than the "
                    f"{batch_size - share} stored groups of each batch (data.batch_size="
                    f"{batch_size}, data.onpolicy_fraction={onpolicy_fraction:g}); use a smaller "
                    "batch or more data"
                )
        self.fresh = FreshGroups(
            task.prompts(),
            count=self.fresh_groups,
            seed=self.seed,
            order=self.prompt_order,
            no_signal=no_signal,
            limit=refill_limit,
            responses=self.responses_per_prompt,
        )

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        groups: list[Group] = []
        if self.stored is not None:  # the first thing, while the policy is the initial one
            sample_stored(self)
        if self.fresh_groups:
            groups += self.fresh.of_round(self, index)
        if self.stored is not None:
            groups += self.stored.take(self.stored_rows(index))
        return groups

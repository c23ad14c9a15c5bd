"""Samples of the present policy, made anew for every round."""

from __future__ import annotations

from typing import Any

from lit_pref.data.checks import need_reward
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.fresh import FreshGroups
from lit_pref.data.refill import NoSignal
from lit_pref.types import Group, PreferenceOracle, RewardSource, RoundClient

__all__ = ["OnPolicyDataModule"]


class OnPolicyDataModule(RoundDataModule):
    """``data=onpolicy``: each round is sampled from the policy as it is then, and scored.

    Args:
        task: prompts.
        reward: what scores samples; required.
        no_signal: what becomes of groups whose rewards are all equal: ``keep`` them, or
            ``refill`` their places with groups of further prompts, from a stream of their own.
        refill_limit: most further groups of a round; None: as many as it has prompts. A place
            that stays unfilled keeps its group with weight 0.
        *args: see ``RoundDataModule``.
    """

    source = "onpolicy"

    def __init__(
        self,
        task: Any,
        *,
        reward: RewardSource | PreferenceOracle | None,
        no_signal: NoSignal = "keep",
        refill_limit: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(task, reward=reward, **sizes)
        if reward is None:
            raise need_reward(self.source)
        self.fresh = FreshGroups(
            task.prompts(),
            count=self.prompts_per_round,
            seed=self.seed,
            order=self.prompt_order,
            no_signal=no_signal,
            limit=refill_limit,
            responses=self.responses_per_prompt,
        )

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        return self.fresh.of_round(self, index)

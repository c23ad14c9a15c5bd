"""Samples of the present policy, made anew for every round."""

from __future__ import annotations

from typing import Any

from lit_pref.data.checks import need_reward
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.refill import NoSignal, check_no_signal
from lit_pref.data.streams import PromptStream
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
        self.refill_limit = self.prompts_per_round if refill_limit is None else refill_limit
        check_no_signal(no_signal, self.refill_limit, self.responses_per_prompt)
        self.no_signal: NoSignal = no_signal
        self.prompts = task.prompts()
        self.stream = PromptStream(prompts=self.prompts, seed=self.seed, order=self.prompt_order)

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        return self.sample_round(
            index, self.stream, no_signal=self.no_signal, refill_limit=self.refill_limit
        )

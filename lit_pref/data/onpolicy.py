"""Samples of the present policy, made anew for every round."""

from __future__ import annotations

from typing import Any

from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.generate import round_prompts
from lit_pref.types import Group, PreferenceOracle, Refusal, RewardSource, RoundClient

__all__ = ["OnPolicyDataModule"]


class OnPolicyDataModule(RoundDataModule):
    """``data=onpolicy``: each round is sampled from the policy as it is then, and scored.

    Args:
        *args: see ``RoundDataModule``; ``reward`` is required.
    """

    source = "onpolicy"
    fresh = True

    def __init__(
        self, task: Any, *, reward: RewardSource | PreferenceOracle | None, **sizes: Any
    ) -> None:
        super().__init__(task, reward=reward, **sizes)
        if reward is None:
            raise Refusal(
                "data=onpolicy needs a reward to score samples with; give reward=length, "
                "reward=callable reward.function=package.module.name, or a task with a true "
                "reward (reward=task)"
            )
        self.prompts = task.prompts()

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        prompts = round_prompts(self.prompts, index, self.prompts_per_round, self.seed)
        key = ("sample", index)
        return self.sample(
            prompts, key, index=index, version=self.version(index), source="onpolicy"
        )

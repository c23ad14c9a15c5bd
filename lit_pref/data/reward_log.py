"""What is logged about the reward of a round, beside the rewards themselves."""

from __future__ import annotations

from collections.abc import Sequence

from lit_pref.data.gather import gather_strided
from lit_pref.rewards.agreement import pair_accuracy
from lit_pref.rewards.base import checked_scores
from lit_pref.rewards.scoring import merged_counts
from lit_pref.tasks.base import Task
from lit_pref.types import Group, PreferenceOracle, RewardSource

__all__ = ["RewardLog"]


class RewardLog:
    """Requests and retries of a remote reward; how right a stand-in for the true reward is.

    Args:
        reward: what training responses are scored with.
        task: has the true reward, perhaps.
    """

    def __init__(self, reward: RewardSource | PreferenceOracle | None, task: Task) -> None:
        self.reward = reward
        truth = None if reward is None else task.true_reward()
        same = truth is not None and _label(truth) == _label(reward)
        self.truth = None if same else truth
        self._before: dict[str, float] = {}

    def of_round(self, groups: Sequence[Group], *, world: int = 1) -> tuple[dict[str, float], int]:
        """Values by name, and how often the true reward was asked for them.

        Args:
            groups: of the round, the same in every process.
            world: number of processes.
        """
        if self.reward is None:
            return {}, 0
        values = self._counts(world)
        label = _label(self.reward)
        scored = [g for g in groups if g.source == "onpolicy" and g.reward_source == label]
        if self.truth is None or not scored:
            return values, 0
        truth = checked_scores(self.truth, scored)
        values["round/true_reward"] = sum(truth) / len(truth)
        accuracy = pair_accuracy(scored, truth)
        if accuracy is not None:
            values["round/reward_accuracy"] = accuracy
        held_out = getattr(self.reward, "held_out_accuracy", None)
        if held_out is not None:
            values["round/reward_held_out_accuracy"] = held_out
        return values, len(truth)

    def _counts(self, world: int) -> dict[str, float]:
        """Since the round before, over all processes."""
        mine = merged_counts([self.reward])
        if not mine:
            return {}
        new = {name: value - self._before.get(name, 0) for name, value in mine.items()}
        self._before = mine
        parts = gather_strided([new], world)
        return {name: float(sum(part[name] for part in parts)) for name in new}


def _label(source: RewardSource | PreferenceOracle | None) -> str:
    return "" if source is None else f"{source.name}@{source.version}"

"""Rewards: what scores a response."""

from lit_pref.rewards.base import RewardError, checked_scores, settings_version, task_reward
from lit_pref.rewards.callable import CallableReward, resolve_function
from lit_pref.rewards.learned import LearnedReward
from lit_pref.rewards.rules import KeywordReward, LengthReward, RegexReward
from lit_pref.rewards.weighted_sum import WeightedSum

__all__ = [
    "CallableReward",
    "KeywordReward",
    "LearnedReward",
    "LengthReward",
    "RegexReward",
    "RewardError",
    "WeightedSum",
    "checked_scores",
    "resolve_function",
    "settings_version",
    "task_reward",
]

"""Rewards: what scores a response, and oracles: what compares two."""

from lit_pref.rewards.base import RewardError, checked_scores, settings_version, task_reward
from lit_pref.rewards.callable import CallableOracle, CallableReward, resolve_function
from lit_pref.rewards.classifier import ClassifierReward
from lit_pref.rewards.comparing import checked_comparisons, planned_pairs, win_shares
from lit_pref.rewards.instructions import InstructionReward
from lit_pref.rewards.judge import JudgeOracle, JudgeReward, make_judge
from lit_pref.rewards.learned import LearnedReward
from lit_pref.rewards.noise import NoisyPreference
from lit_pref.rewards.remote import RemoteReward
from lit_pref.rewards.rules import KeywordReward, LengthReward, RegexReward
from lit_pref.rewards.scoring import Scoring, assess
from lit_pref.rewards.sentiment import SentimentReward
from lit_pref.rewards.weighted_sum import WeightedSum

__all__ = [
    "CallableOracle",
    "CallableReward",
    "ClassifierReward",
    "InstructionReward",
    "JudgeOracle",
    "JudgeReward",
    "KeywordReward",
    "LearnedReward",
    "LengthReward",
    "RegexReward",
    "NoisyPreference",
    "RemoteReward",
    "RewardError",
    "Scoring",
    "SentimentReward",
    "WeightedSum",
    "assess",
    "checked_comparisons",
    "checked_scores",
    "make_judge",
    "planned_pairs",
    "resolve_function",
    "settings_version",
    "task_reward",
    "win_shares",
]

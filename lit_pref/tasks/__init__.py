"""Tasks: what is to be learned."""

from lit_pref.tasks.base import Task
from lit_pref.tasks.contextual_bandit import ContextualBandit
from lit_pref.tasks.gold_reward import GoldReward, GoldRewardTask
from lit_pref.tasks.lengths import LengthReward, LengthTask
from lit_pref.tasks.shipped import ShippedText
from lit_pref.tasks.text import TextTask
from lit_pref.tasks.token_bandit import TokenBandit
from lit_pref.tasks.words import WordStart, WordTask

__all__ = [
    "ContextualBandit",
    "GoldReward",
    "GoldRewardTask",
    "LengthReward",
    "LengthTask",
    "ShippedText",
    "Task",
    "TextTask",
    "TokenBandit",
    "WordStart",
    "WordTask",
]

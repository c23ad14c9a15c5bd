"""Tasks: what is to be learned."""

from lit_pref.tasks.base import Task
from lit_pref.tasks.shipped import ShippedText
from lit_pref.tasks.text import TextTask
from lit_pref.tasks.token_bandit import TokenBandit

__all__ = ["ShippedText", "Task", "TextTask", "TokenBandit"]

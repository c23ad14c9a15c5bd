"""Tasks: what is to be learned."""

from lit_pref.tasks.base import Task
from lit_pref.tasks.contextual_bandit import ContextualBandit
from lit_pref.tasks.text import TextTask
from lit_pref.tasks.token_bandit import TokenBandit

__all__ = ["ContextualBandit", "Task", "TextTask", "TokenBandit"]

"""For tests of users and our own: the battery for objectives, tiny policy, tokenizer, judge."""

from lit_pref.testing.comparers import Shorter
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy, tiny_groups
from lit_pref.testing.tokenizer import CHATML, byte_tokenizer

__all__ = ["CHATML", "ObjectiveTester", "Shorter", "TinyPolicy", "byte_tokenizer", "tiny_groups"]

"""The byte tokenizer, for tests of users and our own."""

from lit_pref.policies.tokenizer import CHATML, byte_tokenizer

__all__ = ["CHATML", "byte_tokenizer"]

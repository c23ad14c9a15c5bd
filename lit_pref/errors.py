"""Errors that every package may raise; imports nothing."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(ValueError):
    """A combination or an input that cannot work; the message says expected, got and the fix.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """

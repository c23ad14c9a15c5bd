"""Checks of hyper-parameters, with messages that say what to give instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_pref.types import Refusal

__all__ = ["choice", "positive", "within"]


def positive(name: str, value: float, *, usual: float) -> float:
    """A finite number larger than 0.

    Args:
        name: of the key, without ``objective.``.
        value: what the user gave.
        usual: shown in the message.
    """
    if not (value > 0 and math.isfinite(value)):
        raise Refusal(
            f"objective.{name} must be larger than 0, got {value}; its usual value is {usual:g}"
        )
    return float(value)


def within(
    name: str, value: float, low: float, high: float, *, ends: str = "[]", what: str
) -> float:
    """A number in an interval.

    Args:
        name: of the key, without ``objective.``.
        value: what the user gave.
        low: lower end of the interval.
        high: upper end.
        ends: a bracket on the side that belongs to it, a parenthesis on one that does not.
        what: what the number is, shown in the message.
    """
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        upper = "infinity" if math.isinf(high) else f"{high:g}"
        raise Refusal(
            f"objective.{name} must be in {ends[0]}{low:g}, {upper}{ends[1]}, got {value}; "
            f"it is {what}"
        )
    return float(value)


def choice(name: str, value: str, options: Sequence[str]) -> None:
    """One of some words."""
    if value not in options:
        raise Refusal(f"objective.{name} must be one of {', '.join(options)}, got {value!r}")

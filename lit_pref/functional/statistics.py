"""Proportions and means with the interval that a finite number of prompts leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["mean_interval", "win_share", "wilson_interval"]

Z95 = 1.959963984540054
"""Quantile of the normal distribution for 95 per cent in the middle."""


def wilson_interval(share: float, count: int, *, z: float = Z95) -> tuple[float, float]:
    r"""Wilson score interval of a proportion.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}

    It is also right, and then cautious, for the mean of n independent numbers in [0, 1] that are
    not all 0 or 1 (ties counted half, several responses to a prompt): their variance is at most
    p (1 - p).

    Args:
        share: p in [0, 1].
        count: n, the number of independent trials.
        z: quantile of the normal distribution.

    Returns:
        Lower and upper end; (0, 1) without trials.

    >>> [round(x, 4) for x in wilson_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    if count == 0:
        return 0.0, 1.0
    square = z * z / count
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def mean_interval(values: Sequence[float], *, z: float = Z95) -> tuple[float, float]:
    """Mean +- z standard errors of independent numbers; a point where there is only one.

    Args:
        values: at least one number.
        z: quantile of the normal distribution.
    """
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, mean
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    half = z * math.sqrt(variance / count)
    return mean - half, mean + half


def win_share(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of all comparisons of one of mine with one of theirs that mine wins; ties are half.

    Args:
        mine: rewards of some responses to a prompt.
        theirs: rewards of other responses to the same prompt.

    >>> win_share([1.0, 0.0], [0.0])
    0.75
    """
    wins = sum((a > b) + 0.5 * (a == b) for a in mine for b in theirs)
    return wins / (len(mine) * len(theirs))

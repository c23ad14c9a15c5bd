"""Mean and confidence interval of a few numbers, without a statistics package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "estimate", "t_quantile"]

# Upper 2.5 % points of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean; None of no values.
        half: half the width of the 95 % confidence interval; None of fewer than two values.
        count: how many values there are.
    """

    mean: float | None
    half: float | None
    count: int


def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t; for more than 30 degrees of freedom by expansion.

    Args:
        freedom: degrees of freedom, from 1.
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Abramowitz and Stegun 26.7.5, first two corrections: exact to four digits from 30 on.
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % confidence interval, values taken as draws of a normal distribution.

    ``mean +- t(0.975, n - 1) * s / sqrt(n)`` with the sample's standard deviation ``s``.
    """
    count = len(values)
    if not count:
        return Estimate(None, None, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    return Estimate(mean, t_quantile(count - 1) * math.sqrt(variance / count), count)

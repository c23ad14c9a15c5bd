"""Intervals and wins against numbers worked out by hand."""

import math

import pytest

from lit_pref.functional.statistics import mean_interval, wilson_interval, win_share


def test_wilson_by_hand():
    # p = 8/10, n = 10, z = 2: middle (0.8 + 0.2) / 1.4, half 2 sqrt(0.016 + 0.01) / 1.4
    low, high = wilson_interval(0.8, 10, z=2.0)
    assert low == pytest.approx((1.0 - 2 * math.sqrt(0.026)) / 1.4)
    assert high == pytest.approx((1.0 + 2 * math.sqrt(0.026)) / 1.4)


def test_wilson_is_never_a_point_and_stays_inside():
    low, high = wilson_interval(1.0, 10, z=2.0)
    assert (low, high) == (pytest.approx(1 / 1.4), 1.0)
    assert wilson_interval(0.0, 10)[0] == 0.0
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


def test_mean_interval_by_hand():
    # mean 2, sample variance 1, three numbers
    low, high = mean_interval([1.0, 2.0, 3.0], z=2.0)
    assert (low, high) == (
        pytest.approx(2 - 2 / math.sqrt(3)),
        pytest.approx(2 + 2 / math.sqrt(3)),
    )
    assert mean_interval([5.0]) == (5.0, 5.0)


def test_win_share_counts_every_comparison_and_ties_half():
    # 2>1, 2>2 tie; 1>1 tie, 1<2: 1 + 0.5 + 0.5 + 0 of 4
    assert win_share([2.0, 1.0], [1.0, 2.0]) == 0.5
    assert win_share([3.0], [1.0, 3.0, 4.0]) == 0.5
    assert win_share([0.0], [1.0]) == 0.0

"""Parts of nearly equal work: by hand, and against the best there is on small sets."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.functional.partition import balanced, fitting

SIZES = st.lists(st.integers(1, 50), max_size=7)


def loads(sizes, parts):
    return [sum(sizes[i] for i in part) for part in parts]


def test_by_hand():
    assert balanced([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]
    assert balanced([], 2) == [[], []]
    # 9+1, 8+2, 7+3 in three parts; greedy filling would have made 9, 8, 7+3, 2+1
    assert sorted(loads([9, 8, 7, 3, 2, 1], fitting([9, 8, 7, 3, 2, 1], 10))) == [10, 10, 10]
    assert fitting([3, 3, 3, 3], 9) == [[0, 2], [1, 3]]  # 6 and 6, not 9 and 3


def test_an_item_above_the_budget_is_alone():
    assert fitting([20, 5, 5], 10) == [[0], [1, 2]]
    # nor may others fill their part up to it: 16 + 16 is above 31
    assert sorted(loads([32, 16, 16, 1], fitting([32, 16, 16, 1], 31))) == [16, 17, 32]


@given(SIZES, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_within_a_third_of_the_best(sizes, count):
    parts = balanced(sizes, count)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert len(sizes) < count or all(parts)
    best = min(
        max(sum(s for s, p in zip(sizes, places, strict=True) if p == n) for n in range(count))
        for places in itertools.product(range(count), repeat=len(sizes))
    )
    assert max(loads(sizes, parts)) <= best * 4 / 3


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_parts_fit(sizes, budget):
    parts = fitting(sizes, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    for part, load in zip(parts, loads(sizes, parts), strict=True):
        assert load <= budget or len(part) == 1
    assert loads(sizes, parts) == sorted(loads(sizes, parts), reverse=True)


@pytest.mark.parametrize("budget", [100, 150, 260])
def test_parts_are_nearly_equal(budget):
    sizes = [(7 * i) % 23 + 5 for i in range(60)]
    parts = loads(sizes, fitting(sizes, budget))
    assert max(parts) - min(parts) <= max(sizes)
    assert len(parts) <= -(-sum(sizes) // budget) + 1

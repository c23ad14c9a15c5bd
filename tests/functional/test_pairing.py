"""Which responses are compared: rules by hand, random rules by frequency."""

import math
from collections import Counter

import pytest
import torch

from lit_pref.functional.pairing import PAIRINGS, order_scores, pair_indices
from lit_pref.functional.rng import generator


def test_ranks_come_before_rewards_before_labels():
    assert order_scores([1, 0], [5.0, 2.0], [True, False]) == [-1, 0]
    assert order_scores([None, 0], [5.0, 2.0], [True, False]) == [5, 2]
    assert order_scores([None, None], [5.0, None], [True, False]) == [1, 0]
    assert order_scores([None], [None], [None]) is None
    assert order_scores([], [], []) is None


def test_best_against_worst_takes_the_first_of_equals():
    assert pair_indices([0.5, 0.9, 0.1, 0.9, 0.1], "best_worst") == [(1, 2)]


def test_all_pairs_without_ties():
    assert pair_indices([1, 3, 2, 3], "all") == [(1, 0), (2, 0), (3, 0), (1, 2), (3, 2)]


@pytest.mark.parametrize("how", PAIRINGS)
def test_ties_and_single_responses_make_no_pair(how):
    for scores in ([], [1.0], [2.0, 2.0, 2.0]):
        assert pair_indices(scores, how, generator=generator(0)) == []


@pytest.mark.parametrize("how", PAIRINGS)
def test_gaps_below_the_threshold_make_no_pair(how):
    assert pair_indices([0.0, 0.4], how, min_gap=0.5, generator=generator(0)) == []
    (pair,) = pair_indices([0.0, 0.4, 0.5], how, min_gap=0.5, generator=generator(1))
    assert set(pair) == {0, 2}


def test_a_gap_equal_to_the_threshold_is_enough():
    assert pair_indices([0.0, 0.5], "all", min_gap=0.5) == [(1, 0)]


def within(seen, count, p):
    """Hoeffding's bound with a chance of 1e-6 to be outside."""
    return abs(seen / count - p) < math.sqrt(math.log(2e6) / (2 * count))


def test_random_pairs_are_uniform_over_what_is_eligible():
    draw, count = torch.Generator().manual_seed(0), 6000
    seen = Counter(
        pair_indices([1.0, 2.0, 2.0, 0.0], "random", generator=draw)[0] for _ in range(count)
    )
    assert set(seen) == {(1, 0), (2, 0), (0, 3), (1, 3), (2, 3)}  # (1, 2) is a tie
    assert all(within(n, count, 1 / 5) for n in seen.values())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bradley_terry_draws_the_winner_by_its_probability(temperature):
    draw, count = torch.Generator().manual_seed(0), 6000
    seen = Counter(
        pair_indices([0.0, 1.0], "bradley_terry", temperature=temperature, generator=draw)[0]
        for _ in range(count)
    )
    # sigmoid(1) = 0.7311, sigmoid(2) = 0.8808
    expected = {1.0: 0.7310586, 0.5: 0.8807971}[temperature]
    assert within(seen[1, 0], count, expected)
    assert seen[1, 0] + seen[0, 1] == count


def test_enormous_gaps_do_not_overflow():
    assert pair_indices([0.0, 1e6], "bradley_terry", generator=generator(0)) == [(1, 0)]


@pytest.mark.parametrize("how", ["random", "bradley_terry"])
def test_the_same_coordinates_make_the_same_pairs(how):
    scores = [0.3, 0.1, 0.2, 0.5]
    found = [pair_indices(scores, how, generator=generator(0, "pairs", i)) for i in range(20)]
    again = [pair_indices(scores, how, generator=generator(0, "pairs", i)) for i in range(20)]
    assert found == again
    assert len({pairs[0] for pairs in found}) > 1

"""Ragged sums and means, by hand, with gradients."""

import torch

from lit_pref.functional.advantages import subtract_mean, whiten
from lit_pref.functional.preference_reference import bco_shift
from lit_pref.functional.segments import (
    expand_segments,
    segment_mean,
    segment_sum,
    suffix_sum,
    weighted_mean,
)

# segments [1, 2], [], [4, 8, 16]
VALUES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 2, 2, 2])
LENGTHS = [2, 0, 3]


def test_sums_and_means_count_empty_segments():
    assert segment_sum(VALUES, OWNER, 3).tolist() == [3, 0, 28]
    assert segment_mean(VALUES, OWNER, LENGTHS).tolist() == [1.5, 0, 28 / 3]
    assert segment_sum(VALUES[:0], OWNER[:0], 2).tolist() == [0, 0]


def test_rewards_to_go():
    assert suffix_sum(VALUES, LENGTHS).tolist() == [3, 2, 28, 24, 16]
    assert suffix_sum(VALUES[:0], []).tolist() == []


def test_gradients():
    for function in (
        lambda v: segment_sum(v, OWNER, 3),
        lambda v: segment_mean(v, OWNER, LENGTHS),
        lambda v: suffix_sum(v, LENGTHS),
    ):
        assert torch.autograd.gradcheck(function, VALUES.clone().requires_grad_())


def test_expanding_some_segments_repeatedly():
    element, owner, position = expand_segments(torch.tensor(LENGTHS), torch.tensor([2, 1, 0, 2]))
    assert element.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert owner.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    assert position.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    nothing = expand_segments(torch.tensor(LENGTHS), torch.tensor([], dtype=torch.long))
    assert [t.tolist() for t in nothing] == [[], [], []]


def test_a_weighted_mean_is_that_of_repeated_values_and_0_where_nothing_counts():
    values = torch.tensor([1.0, 4.0, 10.0])
    assert weighted_mean(values, None) == 5
    assert weighted_mean(values, torch.tensor([2, 1, 0])) == 2
    assert weighted_mean(values, torch.zeros(3)) == 0
    nothing = torch.zeros(3)
    for made in (
        whiten(values, weight=nothing),
        subtract_mean(values, weight=nothing),
        bco_shift(values, values, beta=0.1, weight=nothing),
    ):
        assert made.isfinite().all()

"""Instruments as numbers: against values derived by hand and independent implementations."""

import doctest
import itertools
import math

import pytest
import torch

import lit_pref.functional.instruments as pure
import lit_pref.metrics.instruments as shells
from lit_pref.functional.instruments import (
    correlation,
    count_responses,
    distinct_n,
    enumerate_responses,
    exact_kl,
    length_controlled,
    quantile,
)
from lit_pref.functional.statistics import wilson_interval
from lit_pref.metrics import (
    Coverage,
    Displacement,
    DistinctN,
    LengthStatistics,
    MeanInterval,
    SequenceKL,
    WinRate,
)
from lit_pref.types import Refusal


@pytest.mark.parametrize("module", [pure, shells])
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


# --------------------------------------------------------------------------- pure functions


def test_distinct_n_counts_each_gram_once():
    # 1-grams: 1 2 1 | 1 -> {1, 2} of 4; 2-grams: 12 21 -> 2 of 2; 3-grams: 121; too short: none
    responses = [[1, 2, 1], [1], []]
    assert distinct_n(responses, 1) == (2, 4)
    assert distinct_n(responses, 2) == (2, 2)
    assert distinct_n(responses, 3) == (1, 1)
    assert distinct_n(responses, 4) == (0, 0)


def test_quantile_is_torch_s():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wanted = torch.quantile(torch.tensor(values, dtype=torch.float64), share)
        assert quantile(values, share) == pytest.approx(float(wanted))


def test_correlation_needs_both_sides_to_vary():
    assert correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert correlation([1.0], [1.0]) is None
    assert correlation([0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]) == 0.0
    assert correlation([1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]) == pytest.approx(-1)


def test_win_rate_at_equal_length_of_equal_lengths_is_the_win_rate():
    wins = [1.0] * 70 + [0.0] * 30
    rate, low, high = length_controlled(wins, [2.0] * 100)
    assert rate == pytest.approx(0.7, abs=1e-3)
    assert (low, high) == pytest.approx(wilson_interval(0.7, 100), abs=5e-3)


@pytest.mark.parametrize("wins", [[1.0] * 40, [0.0] * 40])
def test_a_side_that_always_wins_has_a_finite_interval(wins):
    rate, low, high = length_controlled(wins, [float(i % 3) for i in range(40)])
    assert 0 <= low <= rate <= high <= 1
    assert abs(rate - wins[0]) < 0.02
    assert high - low < 0.3


def test_wins_that_come_from_length_are_taken_off():
    """Logits theta + phi tanh(d / s) are drawn; sigmoid(theta) is found again."""
    theta, phi, count = -0.5, 2.0, 20_000
    draw = torch.Generator().manual_seed(3)
    d = torch.randn(count, generator=draw, dtype=torch.float64) * 10 + 12
    chance = (theta + phi * torch.tanh(d / d.std(correction=0))).sigmoid()
    won = torch.rand(count, generator=draw, dtype=torch.float64) < chance
    wins = won.double().tolist()
    rate, low, high = length_controlled(wins, d.tolist())
    assert sum(wins) / count > 0.65  # the longer side wins more often than not
    assert low < 1 / (1 + math.exp(-theta)) < high
    assert high - low < 0.1 and low < rate < high


@pytest.mark.parametrize(
    ("vocabulary", "length", "ends"), [(3, 2, ()), (3, 3, (0,)), (4, 2, (1, 3))]
)
def test_every_response_is_listed_once(vocabulary, length, ends):
    listed = [tuple(r) for r in enumerate_responses(vocabulary, length, ends)]
    every = {
        ids[: next((i + 1 for i, t in enumerate(ids) if t in ends), length)]
        for ids in itertools.product(range(vocabulary), repeat=length)
    }
    assert listed == sorted(listed)
    assert set(listed) == every and len(listed) == len(every)
    assert len(listed) == count_responses(vocabulary, length, ends)


def test_exact_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert float(exact_kl(p.log(), q.log())) == pytest.approx(0.5 * math.log(2))
    assert math.isinf(float(exact_kl(q.log(), p.log())))


# --------------------------------------------------------------------------- torchmetrics


def same_in_parts(make, updates):
    """What a metric says of data that come in parts; a reset forgets them."""
    whole = make()
    for update in updates:
        whole.update(*update)
    found = whole.compute()
    whole.reset()
    for update in updates[:1]:  # nothing of before is left
        whole.update(*update)
    alone = make()
    alone.update(*updates[0])
    assert whole.compute() == alone.compute()
    return found


def test_mean_interval_is_that_of_independent_numbers():
    values = [1.0, 2.0, 4.0, 9.0]
    found = same_in_parts(lambda: MeanInterval("m"), [(values[:1],), (values[1:],)])
    mean = sum(values) / 4
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4)
    assert found["m"] == pytest.approx(mean)
    assert found["m_low"] == pytest.approx(mean - 1.959964 * error)
    assert found["m_high"] == pytest.approx(mean + 1.959964 * error)


def test_sequence_kl_converges_to_the_exact_one():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    y = torch.multinomial(p, 50_000, replacement=True, generator=draw)
    metric = SequenceKL("kl")
    metric.update(p.log()[y], q.log()[y])
    found = metric.compute()
    assert found["kl_low"] < float(exact_kl(p.log(), q.log())) < found["kl_high"]
    assert found["kl_high"] - found["kl_low"] < 0.02


def test_displacement_counts_what_fell_beyond_noise():
    metric = Displacement()
    metric.update(chosen=[-1.0, 1.0], rejected=[-2.0, 0.0])
    metric.update(chosen=[-1e-6, -3.0], rejected=[0.0, -8.0])
    assert metric.compute() == pytest.approx(
        {"chosen_change": (-1e-6 - 3) / 4, "rejected_change": -2.5, "chosen_fell": 0.5}
    )


def test_coverage_is_by_token():
    metric = Coverage(floor=-1.5)
    metric.update([-3.0, -3.0, -3.0], [1, 2, 3])  # -3, -1.5, -1 per token
    assert metric.compute() == {"coverage": pytest.approx(2 / 3)}


def test_distinct_n_over_updates():
    found = same_in_parts(lambda: DistinctN(n=[1, 2]), [([[1, 2], [1, 2]],), ([[3]],)])
    assert found == {"distinct_responses": 2 / 3, "distinct_1": 3 / 5, "distinct_2": 1 / 2}
    with pytest.raises(Refusal, match="whole numbers from 1"):
        DistinctN(n=[0])


def test_length_statistics_by_hand():
    found = same_in_parts(LengthStatistics, [([2, 4],), ([6],)])
    assert found["length_std"] == pytest.approx(math.sqrt(8 / 3))
    assert (found["length_p10"], found["length_p90"]) == (2.4, 5.6)


def test_win_rate_has_both_intervals():
    metric = WinRate("w")
    metric.update([1.0, 0.5], [3.0, -3.0])
    metric.update([0.0], [0.0])
    found = metric.compute()
    assert set(found) == {f"w{lc}{end}" for lc in ("", "_lc") for end in ("", "_low", "_high")}
    assert found["w"] == 0.5
    assert (found["w_low"], found["w_high"]) == wilson_interval(0.5, 3)


def test_sums_of_two_processes_are_added():
    """By torchmetrics' own reduction, each state stacked over processes."""
    two, both = Displacement(), Displacement()
    one = Displacement(sync_on_compute=False)
    one.update(chosen=[1.0], rejected=[0.0])
    two.update(chosen=[-1.0, -1.0], rejected=[1.0, 1.0])
    both.update(chosen=[1.0, -1.0, -1.0], rejected=[0.0, 1.0, 1.0])
    gather = lambda state, group=None: [state, two.sums]  # noqa: E731
    one.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert one.compute() == both.compute()

"""Oracles: which pairs, win shares, what objectives see of them, and noise on verdicts."""

import math

import pytest
import torch

from lit_pref.functional.pairing import compared_pairs
from lit_pref.objectives import DPO, REINFORCE
from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano
from lit_pref.rewards import (
    CallableOracle,
    LengthReward,
    NoisyPreference,
    RewardError,
    WeightedSum,
    assess,
    checked_comparisons,
    checked_scores,
    planned_pairs,
    win_shares,
)
from lit_pref.rewards.agreement import pair_accuracy
from lit_pref.rewards.base import measuring
from lit_pref.rewards.weighted_sum import z_scores
from lit_pref.types import Group, Prompt, Refusal, Response, Round


def group(prompt, *responses, id=0, **columns):
    return Group(
        prompt=Prompt(id=id, text=prompt, ids=[1], columns=columns),
        responses=[Response(ids=[ord(c) for c in text], text=text) for text in responses],
    )


def longer(prompts, first, second):
    return [
        0.5 if len(a) == len(b) else float(len(a) > len(b))
        for a, b in zip(first, second, strict=True)
    ]


@pytest.mark.parametrize("count", range(2, 8))
@pytest.mark.parametrize("opponents", [None, 1, 2, 3])
def test_every_response_is_compared_equally_often(count, opponents):
    pairs = planned_pairs(count, opponents)
    unordered = {frozenset(p) for p in pairs}
    assert len(unordered) == len(pairs)
    often = [sum(k in p for p in pairs) for k in range(count)]
    everyone = opponents is None or 2 * opponents >= count - 1
    assert often == [count - 1 if everyone else 2 * opponents] * count


def test_win_shares_by_hand():
    # 0 beats 1 surely, 1 beats 2 with 3/4, 0 and 2 tie; 3 was not asked about
    compared = [[0, 1, 1.0], [1, 2, 0.75], [0, 2, 0.5]]
    assert win_shares(4, compared) == [0.75, 0.375, 0.375, 0.5]


def test_what_is_asked_and_written():
    seen = {}

    def spy(prompts, first, second, level):
        seen.update(prompts=prompts, first=first, second=second, level=level)
        return longer(prompts, first, second)

    oracle = CallableOracle(spy, name="spy")
    groups = [group("p", "a", "bb", "cc", level=1), group("q", "ddd", "e", level=2)]
    assess(oracle, groups)
    assert seen == {
        "prompts": ["p", "p", "p", "q"],
        "first": ["a", "a", "bb", "ddd"],
        "second": ["bb", "cc", "cc", "e"],
        "level": [1, 1, 1, 2],
    }
    assert groups[0].comparisons == [[0, 1, 0.0], [0, 2, 0.0], [1, 2, 0.5]]
    assert [r.reward for r in groups[0].responses] == [0.0, 0.75, 0.75]
    assert groups[1].reward_source == f"spy@{oracle.version}"
    again = Group.from_state(groups[0].state())
    assert again.comparisons == groups[0].comparisons
    assert groups[0].to_json()["comparisons"] == groups[0].comparisons
    assert "comparisons" not in group("p", "a").to_json()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda p, a, b: [0.5], r"expected 3 answers, one per comparison, got 1"),
        (lambda p, a, b: [1.5] * len(p), r"probability in \[0, 1\].* got 1.5"),
        (lambda p, a, b: ["A"] * len(p), r"got 'A' of type str"),
        (lambda p, a, b: [math.nan] * len(p), r"got nan"),
        (lambda p, a, b: 1 / 0, r"it raised ZeroDivisionError"),
    ],
)
def test_wrong_answers_name_both_responses(function, words):
    with pytest.raises(RewardError, match=words) as error:
        checked_comparisons(CallableOracle(function), [group("p", "a", "bb", "c", id=4)])
    assert "prompt (id 4): 'p'\n  response: 'a'\n  against: 'bb'" in str(error.value)


# ------------------------------------------------------------------------------- objectives


CYCLE = [[0, 1, 1.0], [1, 2, 1.0], [0, 2, 0.0], [0, 3, 1.0], [1, 3, 1.0], [2, 3, 0.5]]
"""0 beats 1, 1 beats 2, 2 beats 0; 3 loses to 0 and 1 and ties with 2."""


def judged(comparisons=CYCLE):
    out = group("p", "a", "b", "c", "d")
    out.comparisons = comparisons
    for response, share in zip(out.responses, win_shares(4, comparisons), strict=True):
        response.reward = share
    return out


def dpo(**settings):
    return DPO(HFPolicy(gpt_nano()), reference=FrozenReference(), **settings)


def pairs_of(objective, groups):
    round = Round(index=0, groups=groups)
    round.keep = objective.select(round, seed=0)
    return objective.view(round, seed=0), round


def test_objectives_on_pairs_train_on_the_verdicts_themselves():
    view, _ = pairs_of(dpo(pairs="all"), [judged()])
    # the cycle is kept, which no order of the four responses could give
    assert view.pairs.tolist() == [[0, 1], [1, 2], [2, 0], [0, 3], [1, 3]]
    view, round = pairs_of(dpo(pairs="best_worst"), [judged()])
    assert round.keep == [[True, False, False, True]]  # shares 2/3, 2/3, 1/2, 1/6: first best
    assert view.pairs.tolist() == [[0, 1]]


def test_ties_make_no_pair_and_are_counted():
    tied = judged([[i, j, 0.5] for i, j, _ in CYCLE])
    view, round = pairs_of(dpo(pairs="all"), [tied])
    assert view.pairs.shape == (0, 2)
    assert round.counts["data/groups_without_pair"] == 1.0


def test_scalar_objectives_see_win_shares():
    objective = REINFORCE(HFPolicy(gpt_nano()), baseline="none")
    round = Round(index=0, groups=[judged()])
    round.keep = objective.select(round, seed=0)
    view = objective.view(round, seed=0)
    assert view.response["reward"].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 2, 1 / 6])


def test_random_and_bradley_terry_draws():
    comparisons = [(0, 1, 0.25), (1, 2, 0.5), (0, 2, 1.0)]
    shares = win_shares(3, comparisons)
    draws = torch.Generator().manual_seed(0)
    drawn = [compared_pairs(comparisons, shares, "random", generator=draws)[0] for _ in range(400)]
    assert set(drawn) == {(1, 0), (0, 2)}
    assert 150 < drawn.count((1, 0)) < 250
    drawn = [
        compared_pairs(comparisons, shares, "bradley_terry", generator=draws)[0] for _ in range(400)
    ]
    assert set(drawn) == {(1, 0), (0, 1), (0, 2)}
    assert 120 < drawn.count((1, 0)) < 180  # 1/2 * 3/4 of 400 = 150
    assert 30 < drawn.count((0, 1)) < 75  # 1/2 * 1/4 of 400 = 50
    assert compared_pairs(comparisons, shares, "all", min_gap=0.6) == [(0, 2)]


# ------------------------------------------------------------------------------- noise


def noisy(**settings):
    return NoisyPreference(LengthReward(max_new_tokens=1), **settings)  # reward = -length


def many(count=400):
    return [group("p", "a", "bb" + chr(65 + n % 26), id=n) for n in range(count)]


def verdicts(oracle, groups):
    return [c[0][2] for c in checked_comparisons(oracle, groups)]


def test_without_noise_the_larger_reward_wins():
    assert checked_comparisons(noisy(), [group("p", "a", "bb", "cc")]) == [
        [[0, 1, 1.0], [0, 2, 1.0], [1, 2, 0.5]]
    ]


def test_flips_come_with_their_probability():
    assert verdicts(noisy(flip=1.0), many(9)) == [0.0] * 9
    share = 1 - sum(verdicts(noisy(flip=0.2), many())) / 400
    assert 0.13 < share < 0.27  # 3.5 standard errors
    assert checked_comparisons(noisy(flip=1.0), [group("p", "aa", "bb")]) == [[[0, 1, 0.5]]]


def test_bradley_terry_draws_with_their_probability():
    share = sum(verdicts(noisy(temperature=2.0), many())) / 400
    assert abs(share - 1 / (1 + math.exp(-1))) < 0.08  # rewards -1 and -3: sigmoid(2 / 2)
    assert set(verdicts(noisy(temperature=2.0), many(40))) == {0.0, 1.0}


def test_noise_is_a_function_of_what_is_asked():
    oracle = noisy(flip=0.3, temperature=1.0)
    groups = many(60)
    there = verdicts(oracle, groups)
    assert there == [verdicts(noisy(flip=0.3, temperature=1.0), [g])[0] for g in groups]
    turned = [group("p", *[r.text for r in reversed(g.responses)], id=g.prompt.id) for g in groups]
    assert verdicts(oracle, turned) == [1 - v for v in there]
    assert verdicts(noisy(flip=0.3, temperature=1.0, seed=1), groups) != there
    same = [group("p", "a", "bb"), group("p", "a", "bb")]
    assert len(set(verdicts(oracle, same))) == 1


def test_noise_on_an_oracle():
    oracle = NoisyPreference(CallableOracle(longer), flip=1.0)
    assert checked_comparisons(oracle, [group("p", "a", "bb", "cc")]) == [
        [[0, 1, 1.0], [0, 2, 1.0], [1, 2, 0.5]]
    ]
    with pytest.raises(Refusal, match="compares"):
        NoisyPreference(CallableOracle(longer), temperature=1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flip": 1.5}, r"reward\.flip"),
        ({"temperature": 0}, r"reward\.temperature"),
        ({"opponents": 0}, r"reward\.opponents"),
    ],
)
def test_noise_refusals(settings, words):
    with pytest.raises(Refusal, match=words):
        noisy(**settings)
    with pytest.raises(Refusal, match="no true reward"):
        NoisyPreference()
    assert NoisyPreference(true_reward=LengthReward(max_new_tokens=2)).name == "noisy length"


# ------------------------------------------------------------------------------- sums, measuring


def test_z_scored_sum_by_hand():
    groups = [group("p", "a", "bbb"), group("q", "cc", "dd", id=1)]
    length = LengthReward(max_new_tokens=1)  # -1, -3, -2, -2
    total = WeightedSum([length, CallableOracle(longer)], weights=[2.0, 0.5], normalise="group")
    # length: z = 1, -1, 0, 0; win shares 0, 1, 1/2, 1/2: z = -1, 1, 0, 0
    assert total.score(groups) == [1.5, -1.5, 0.0, 0.0]
    plain = WeightedSum([length, CallableOracle(longer)], weights=[2.0, 0.5])
    assert plain.score(groups) == [-2.0, -5.5, -3.75, -3.75]
    assert total.version != plain.version
    with pytest.raises(Refusal, match=r"reward\.normalise"):
        WeightedSum([length], weights=[1], normalise="round")


def test_z_scores_of_nearly_equal_numbers_are_finite():
    assert z_scores([0.1, 0.1, 0.1, 5e-324, 0.0], [3, 2])[:3] == [0.0] * 3
    assert all(math.isfinite(z) for z in z_scores([0.0, 5e-324, 1e308, -1e308], [2, 2]))


def test_policies_are_measured_without_noise_and_normalisation():
    length = LengthReward(max_new_tokens=1)
    assert measuring(None) is None
    assert measuring(length) is length
    assert measuring(NoisyPreference(length)) is length
    assert measuring(CallableOracle(longer)) is None
    groups = [group("p", "a"), group("q", "bb")]
    total = WeightedSum([length, length], weights=[1.0, 2.0], normalise="group")
    assert measuring(total).score(groups) == [-3.0, -6.0]
    assert measuring(WeightedSum([CallableOracle(longer)], weights=[1.0])) is None
    assert measuring(WeightedSum([NoisyPreference(length)], weights=[2.0])).score(groups) == [
        -2,
        -4,
    ]
    assert checked_scores(total, groups) == [0.0, 0.0]


def test_pair_accuracy_by_hand():
    one, two = group("p", "a", "b", "c"), group("q", "a", "b")
    for each, rewards in ((one, [1.0, 2.0, 2.0]), (two, [0.0, 5.0])):
        for response, reward in zip(each.responses, rewards, strict=True):
            response.reward = reward
    # truth 1, 3, 2 and 7, 7: (0,1) right, (0,2) right, (1,2) equal rewards: half; q has no order
    assert pair_accuracy([one, two], [1, 3, 2, 7, 7]) == pytest.approx(2.5 / 3)
    assert pair_accuracy([two], [7, 7]) is None

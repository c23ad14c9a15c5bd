import pytest
import torch

from lit_pref.objectives import DPO, PrefFT
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, response_sums, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Group, Prompt, Refusal, Response, Round


def scored(*rewards, group=0, **fields):
    """A group of two-token responses with these rewards."""
    responses = [Response(ids=[1 + i, 2], reward=r) for i, r in enumerate(rewards)]
    return Group(prompt=Prompt(id=group, text="", ids=[3]), responses=responses, **fields)


def log_probs(module, batch):
    with torch.no_grad():
        return response_sums(module.policy(batch.tokens).logps, batch.tokens)


class TestPrefFT(ObjectiveTester):
    objective = PrefFT

    def test_loss_against_the_formula(self):
        """The mean over the tokens of the eight best responses."""
        module, round = self.prepared()
        batch = make_batch(round)
        best = [max(g.responses, key=lambda r: r.reward) for g in round.groups]
        assert batch.tokens.lengths == [len(r.ids) for r in best]
        expected = -sum(log_probs(module, batch)) / sum(len(r.ids) for r in best)
        assert whole_loss(module, batch) == pytest.approx(expected)


class TestPrefFTOnAllPairs(ObjectiveTester):
    objective = PrefFT
    options = {"pairs": "all", "denominator": "responses"}

    def test_loss_against_the_formula(self):
        """The mean over 8 x 6 pairs: the best of four wins three, the next two, the next one."""
        module, round = self.prepared()
        batch = make_batch(round)
        every = iter(log_probs(module, batch))
        total = 0.0
        for group in round.groups:
            order = sorted(r.reward for r in group.responses)
            total += sum(
                order.index(r.reward) * next(every) for r in group.responses if r.reward != order[0]
            )
        assert whole_loss(module, batch) == pytest.approx(-total / 48, rel=1e-6)


class TestPrefFTOnAllPairsByTokens(ObjectiveTester):
    objective = PrefFT
    options = {"pairs": "all"}


def test_a_winner_counts_once_for_each_pair_it_wins():
    # Of rewards 1, 3, 2: the second beats two, the third beats one, the first none.
    round = Round(index=0, groups=[scored(1.0, 3.0, 2.0)])
    module = PrefFT(TinyPolicy(), pairs="all")
    assert module.weights(round, seed=0) == [[None, 2.0, 1.0]]


def test_the_chosen_ones_are_those_of_pairwise_objectives():
    groups = [scored(*torch.randn(4).tolist(), group=g) for g in range(20)]
    round = Round(index=3, groups=groups)
    options = {"pairs": "bradley_terry"}
    mine = PrefFT(TinyPolicy(), **options).weights(round, seed=7)
    other = DPO(TinyPolicy(), reference=FrozenReference(), **options)
    for slot, (group, row) in enumerate(zip(groups, mine, strict=True)):
        ((chosen, _),) = other.group_pairs(group, slot, 3, 7)
        assert [k for k, weight in enumerate(row) if weight] == [chosen]


def test_ties_have_no_target():
    module = PrefFT(TinyPolicy())
    round = Round(index=0, groups=[scored(1.0, 1.0)])
    round.keep = module.select(round, seed=0)
    module.view(round, seed=0)
    assert round.keep == [[False, False]]
    assert round.counts["data/groups_without_target"] == 1


@pytest.mark.parametrize("options", [{"pairs": "best"}, {"min_gap": -1}, {"pair_temperature": 0}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        PrefFT(TinyPolicy(), **options)


@pytest.mark.parametrize("pairs", ["all", "random", "bradley_terry", "best_worst"])
def test_it_imitates_the_winners_of_the_pairs_that_pairwise_objectives_make(pairs):
    """Of an oracle's verdicts, also where they form a cycle; gaps of ranked data are rewards'."""
    circle = scored(0.5, 0.5, 0.5, comparisons=[[0, 1, 1.0], [1, 2, 1.0], [2, 0, 1.0]])
    sure = scored(0.3, 0.7, 0.5, group=1, comparisons=[[0, 1, 0.4], [1, 2, 0.8], [2, 0, 0.3]])
    ranked = scored(0.1, 0.9, 0.2, group=2)
    for response, rank in zip(ranked.responses, (2, 0, 1), strict=True):
        response.rank = rank
    groups = [circle, sure, ranked]
    options = {"pairs": pairs, "min_gap": 0.3}
    dpo = DPO(TinyPolicy(), reference=FrozenReference(), **options)
    mine = PrefFT(TinyPolicy(), **options)
    for seed in range(5):
        wins = [[0.0] * 3 for _ in groups]
        for slot, group in enumerate(groups):
            for chosen, _ in dpo.group_pairs(group, slot, 0, seed):
                wins[slot][chosen] += 1
        found = mine.weights(Round(index=0, groups=groups), seed=seed)
        assert [[w or 0.0 for w in row] for row in found] == wins

import math

import pytest
import torch

from lit_pref.objectives import RWR
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


class TestRWR(ObjectiveTester):
    objective = RWR
    options = {"temperature": 0.5, "clip": 5.0}

    def test_loss_against_the_formula(self):
        """Weights min(exp(2 r), 5), over the number of tokens."""
        module, round = self.prepared()
        batch = make_batch(round)
        weights = [min(math.exp(2 * r.reward), 5.0) for g in round.groups for r in g.responses]
        assert max(weights) == 5.0
        total = sum(w * x for w, x in zip(weights, log_probs(module, batch), strict=True))
        expected = -total / sum(batch.tokens.lengths)
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


class TestRWROnZScoresOfTheRound(ObjectiveTester):
    objective = RWR
    options = {"normalise": "round"}


def test_weights_by_hand():
    # exp(0), exp(1), and exp(5) = 148 cut at 20.
    round = Round(index=0, groups=[scored(0.0, 1.0), scored(5.0)])
    first, second = RWR(TinyPolicy()).weights(round, seed=0)
    assert first == pytest.approx([1.0, math.e])
    assert second == pytest.approx([20.0])


def test_z_scores_of_the_round_leave_out_groups_that_do_not_count():
    # Of 1 and 3 mean 2 and population deviation 1: exp(-1) and exp(1).
    round = Round(index=0, groups=[scored(1.0, 3.0), scored(100.0, weight=0.0)])
    first, _ = RWR(TinyPolicy(), normalise="round").weights(round, seed=0)
    assert first == pytest.approx([math.exp(-1), math.exp(1)])


def test_huge_rewards_give_finite_weights():
    round = Round(index=0, groups=[scored(1e6, -1e6)])
    weights = RWR(TinyPolicy(), clip=None).weights(round, seed=0)[0]
    assert all(math.isfinite(torch.tensor(w).item()) for w in weights)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"normalise": "batch"}, {"clip": 0}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        RWR(TinyPolicy(), **options)

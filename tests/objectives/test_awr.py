import math

import pytest
import torch

from lit_pref.objectives import AWR
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


class TestAWR(ObjectiveTester):
    objective = AWR
    options = {"temperature": 2.0}

    def test_loss_against_the_formula(self):
        """exp(z / 2) with z the z-score within the prompt, over the number of responses."""
        module, round = self.prepared()
        batch = make_batch(round)
        weights = []
        for group in round.groups:
            rewards = [r.reward for r in group.responses]
            mean = sum(rewards) / 4
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
            weights += [math.exp((r - mean) / std / 2) for r in rewards]
        total = sum(w * x for w, x in zip(weights, log_probs(module, batch), strict=True))
        assert whole_loss(module, batch) == pytest.approx(-total / 32, rel=1e-6)


class TestAWROnRawRewards(ObjectiveTester):
    """The form of the one-step bandit."""

    objective = AWR
    options = {"normalise": "none", "clip": 3.0}


def test_weights_by_hand():
    # Rewards 1, 3: z-scores -1 and 1. Equal rewards: advantage 0, weight 1.
    round = Round(index=0, groups=[scored(1.0, 3.0), scored(2.0, 2.0)])
    first, second = AWR(TinyPolicy(), temperature=0.5).weights(round, seed=0)
    assert first == pytest.approx([math.exp(-2), math.exp(2)])
    assert second == [1.0, 1.0]


@pytest.mark.parametrize("options", [{"temperature": -1}, {"normalise": "batch"}, {"clip": 0}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        AWR(TinyPolicy(), **options)

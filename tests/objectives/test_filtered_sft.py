import pytest
import torch

from lit_pref.objectives import FilteredSFT
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


class TestFilteredSFT(ObjectiveTester):
    objective = FilteredSFT
    options = {"top_k": 2}

    def test_loss_against_the_formula(self):
        """The mean over the tokens of the two best of each prompt."""
        module, round = self.prepared()
        batch = make_batch(round)
        kept = []
        for group in round.groups:
            cut = sorted((r.reward for r in group.responses), reverse=True)[1]
            kept += [len(r.ids) for r in group.responses if r.reward >= cut]
        assert batch.tokens.lengths == kept
        expected = -sum(log_probs(module, batch)) / sum(kept)
        assert whole_loss(module, batch) == pytest.approx(expected)


class TestThreshold(ObjectiveTester):
    objective = FilteredSFT
    options = {"top_k": None, "threshold": 0.3, "denominator": "responses"}


def weights(*rewards, **options):
    round = Round(index=0, groups=[scored(*rewards)])
    return FilteredSFT(TinyPolicy(), **options).weights(round, seed=0)[0]


def test_filters_by_hand():
    assert weights(0.1, 0.9, 0.5, top_k=2) == [None, 1.0, 1.0]
    assert weights(0.5, 0.5, 0.5, top_k=2) == [1.0, 1.0, None]
    assert weights(0.1, 0.9, 0.5, top_k=None, threshold=0.5) == [None, 1.0, None]
    assert weights(0.1, 0.9, 0.5, top_k=1, threshold=0.95) == [None, None, None]
    assert weights(0.1, 0.9, top_k=3) == [1.0, 1.0]


def test_refusals():
    with pytest.raises(Refusal, match="needs a filter"):
        FilteredSFT(TinyPolicy(), top_k=None)
    with pytest.raises(Refusal, match="top_k"):
        FilteredSFT(TinyPolicy(), top_k=0)

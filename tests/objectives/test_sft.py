import pytest
import torch

from lit_pref.objectives import SFT
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


class TestSFT(ObjectiveTester):
    objective = SFT

    def test_loss_against_the_formula(self):
        """The mean over all tokens of -log prob."""
        module, round = self.prepared()
        batch = make_batch(round)
        assert batch.tokens.num_responses == 32
        expected = -sum(log_probs(module, batch)) / sum(batch.tokens.lengths)
        assert whole_loss(module, batch) == pytest.approx(expected)


class TestSFTPerResponse(ObjectiveTester):
    objective = SFT
    options = {"denominator": "responses"}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        assert whole_loss(module, batch) == pytest.approx(-sum(log_probs(module, batch)) / 32)


def test_every_response_counts_once():
    round = Round(index=0, groups=[scored(1.0, 0.0), scored(None, None)])
    assert SFT(TinyPolicy()).weights(round, seed=0) == [[1.0, 1.0], [1.0, 1.0]]


def test_an_unknown_denominator_is_refused():
    with pytest.raises(Refusal, match="tokens, responses"):
        SFT(TinyPolicy(), denominator="words")

"""The reference code's log-prob, and that the correct one is a distribution over sequences."""

import itertools

import pytest
import torch

from lit_pref.policies import HFPolicy, gpt_nano
from lit_pref.policies.legacy import UnshiftedPolicy, gpt_nano_legacy
from lit_pref.types import FlatTokens, Group, Policy, Prompt, Refusal, Response

SMALL = {"vocab_size": 5, "context_length": 3}


def flat(sequences, prompt=(3,)):
    responses = [Response(ids=list(s)) for s in sequences]
    return FlatTokens.from_groups(
        [Group(prompt=Prompt(id=0, text="", ids=list(prompt)), responses=responses)]
    )


def louder(policy):
    """Larger weights, so that positions differ."""
    with torch.no_grad():
        for p in policy.load().parameters():
            p.mul_(6)
    return policy


def sums(policy, tokens):
    return policy.token_logps(tokens).logps.view(tokens.num_responses, -1).sum(1)


def test_shifted_log_probs_are_a_distribution_and_unshifted_ones_are_not():
    tokens = flat(itertools.product(range(5), repeat=2))  # every response of two tokens
    right = sums(louder(HFPolicy(gpt_nano(**SMALL))), tokens)
    assert right.exp().sum().item() == pytest.approx(1, abs=1e-6)
    wrong = sums(louder(UnshiftedPolicy(gpt_nano_legacy(**SMALL))), tokens)
    assert abs(wrong.exp().sum().item() - 1) > 0.05


def test_shifted_log_probs_are_what_decoding_samples_from():
    policy = louder(HFPolicy(gpt_nano(**SMALL)))
    logits, state = policy.prefill([[3]], 5)
    first = logits.log_softmax(-1)[0]
    second = policy.step(torch.arange(5), state)[0].log_softmax(-1)
    truth = (first[:, None] + second).flatten()
    mine = sums(policy, flat(itertools.product(range(5), repeat=2)))
    assert (mine.exp() - truth.exp()).abs().max() < 1e-6


def test_unshifted_is_the_gather_without_the_shift():
    policy = louder(UnshiftedPolicy(gpt_nano_legacy(**SMALL)))
    assert isinstance(policy, Policy)
    logps = policy.model(input_ids=torch.tensor([[3, 1, 4]])).logits.log_softmax(-1)[0]
    out = policy.token_logps(flat([[1, 4]])).logps
    assert torch.allclose(out, torch.stack([logps[0, 3] + logps[1, 1], logps[2, 4]]))
    copy = policy.frozen_copy()
    assert torch.equal(copy.token_logps(flat([[1, 4]])).logps, out)


def test_refusals():
    policy = UnshiftedPolicy(gpt_nano_legacy(**SMALL))
    with pytest.raises(Refusal, match="model=gpt_nano"):
        policy.token_logps(flat([[1, 4]]), stats=("entropy",))
    with pytest.raises(Refusal, match="one length"):
        policy.token_logps(flat([[1, 4], [1]]))

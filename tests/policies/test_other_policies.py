"""What references and objectives ask of policies that are no Hugging Face model."""

import pytest
import torch

from lit_pref.objectives.step import _placeholder
from lit_pref.policies import ContextMLPPolicy, FrozenReference, MovingReference
from lit_pref.policies.context_mlp import context_mlp
from lit_pref.policies.legacy import UnshiftedPolicy, gpt_nano_legacy
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import FlatTokens, Group, Prompt, Response

KINDS = {
    "context_mlp": lambda: ContextMLPPolicy(context_mlp()).load(),
    "legacy": lambda: UnshiftedPolicy(gpt_nano_legacy()).load(),
    "tiny": lambda: TinyPolicy(dtype=torch.float32),
}


@pytest.fixture(params=KINDS)
def policy(request):
    return KINDS[request.param]()


def tokens(context=3):
    prompt = Prompt(id=0, text="", ids=[context])
    return FlatTokens.from_groups([Group(prompt=prompt, responses=[Response(ids=[2])])])


def test_a_frozen_reference_of_it_keeps_log_probs_where_its_weights_have_a_digest(policy, tmp_path):
    reference = FrozenReference(cache_dir=tmp_path)
    reference.prepare(policy)
    kept = reference.cache(precision="32-true") is not None
    assert kept == isinstance(policy, ContextMLPPolicy)
    assert torch.equal(reference.token_logps(tokens()).logps, policy(tokens()).logps)


def test_a_reference_may_follow_it(policy):
    moving = MovingReference(mix=1.0)
    moving.prepare(policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.5)
    assert not torch.equal(moving.token_logps(tokens()).logps, policy(tokens()).logps)
    moving.advance(policy, 1)
    assert torch.equal(moving.token_logps(tokens()).logps, policy(tokens()).logps)


def test_a_process_without_responses_has_a_stand_in_that_every_policy_knows():
    context = tokens(1000)  # a context id, above all actions
    out = ContextMLPPolicy(context_mlp()).load()(_placeholder(context)).logps
    assert len(out) == 1 and torch.isfinite(out).all()

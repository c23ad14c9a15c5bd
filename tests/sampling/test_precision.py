"""Sampling with rounded weights: what is recorded, refreshed, chosen, kept and refused."""

import logging

import pytest
import torch

from lit_pref.policies import HFPolicy, tiny
from lit_pref.policies.context_mlp import ContextMLPPolicy, context_mlp
from lit_pref.sampling import NativeSampler, precision
from lit_pref.types import FlatTokens, Prompt, Refusal


@pytest.fixture
def policy():
    policy = HFPolicy(tiny()).load().eval()
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(2.0)  # distributions far from uniform
    return policy


def sample(sampler, policy, seed=0):
    draw = torch.Generator().manual_seed(seed)
    prompts = [
        Prompt(id=i, text="", ids=torch.randint(1, 250, (n,), generator=draw).tolist())
        for i, n in enumerate((5, 2, 9))
    ]
    return sampler.sample(
        policy, prompts, key=(0, "sample", 0), occurrences=[0] * 3, responses=4, end_ids=(250, 251)
    )


def recorded(groups, name="behaviour_logps"):
    return torch.tensor([x for g in groups for r in g.responses for x in getattr(r, name)])


def test_behaviour_log_probs_are_those_of_the_rounded_policy(policy):
    groups = sample(NativeSampler(max_new_tokens=12, precision="bfloat16"), policy)
    tokens = FlatTokens.from_groups(groups)
    with torch.no_grad():
        exact = policy(tokens).logps
        half = policy.in_precision(torch.bfloat16)(tokens).logps.float()
    found = recorded(groups)
    assert (found - half).abs().mean() < 0.05  # rounding of activations, in another order
    assert 1e-4 < (found - exact).abs().mean() < 0.2
    assert torch.equal(found, recorded(groups, "policy_logps"))
    assert all(g.sampling["precision"] == "bfloat16" for g in groups)


def test_the_copy_follows_the_weights_and_is_no_part_of_the_policy(policy):
    names, count = list(policy.state_dict()), len(list(policy.parameters()))
    one = policy.in_precision(torch.bfloat16)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.25)
    two = policy.in_precision(torch.bfloat16)
    assert one is two
    for rounded, p in zip(two.parameters(), policy.parameters(), strict=True):
        assert torch.equal(rounded, p.to(torch.bfloat16)) and not rounded.requires_grad
    assert list(policy.state_dict()) == names and len(list(policy.parameters())) == count
    assert next(policy.parameters()).dtype == torch.float32


def test_rounded_samples_depend_on_coordinates_alone(policy):
    sampler = NativeSampler(max_new_tokens=12, precision="bfloat16")
    once = [r.ids for g in sample(sampler, policy) for r in g.responses]
    fresh = NativeSampler(max_new_tokens=12, precision="bfloat16")
    policy._rounded.clear()  # as in a resumed run
    assert [r.ids for g in sample(fresh, policy) for r in g.responses] == once


def test_by_default_and_when_measuring_nothing_is_rounded(policy):
    exact = sample(NativeSampler(max_new_tokens=12), policy)
    assert "precision" not in exact[0].sampling
    measuring = NativeSampler(max_new_tokens=12, precision="bfloat16").plain()
    assert sample(measuring, policy) == exact
    assert policy._rounded == []


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bfloat16"), (0.95, "policy"), (2, "policy")])
def test_auto_takes_what_a_probe_found_faster_and_says_so(
    policy, monkeypatch, caplog, half, expected
):
    def seconds(candidate):
        return half if next(candidate.parameters()).dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    sampler = NativeSampler(max_new_tokens=12, precision="auto")
    assert sampler.state_dict() == {"picked": None}
    with caplog.at_level(logging.INFO):
        groups = sample(sampler, policy)
    assert [f"auto: {expected}" in r.message for r in caplog.records] == [True]
    assert sampler.state_dict() == {"picked": expected}
    assert groups[0].sampling.get("precision", "policy") == expected


def test_a_resumed_run_keeps_what_was_found(policy, monkeypatch):
    def never(candidate):
        raise AssertionError("probed again")

    monkeypatch.setattr(precision, "_seconds", never)
    sampler = NativeSampler(max_new_tokens=12, precision="auto")
    sampler.load_state_dict({"picked": "bfloat16"})
    assert sample(sampler, policy) == sample(
        NativeSampler(max_new_tokens=12, precision="bfloat16"), policy
    )


def test_the_probe_runs(policy):
    assert precision.faster_precision(policy) in ("policy", "bfloat16")


def test_what_cannot_be_is_refused(policy):
    with pytest.raises(Refusal, match=r"sampler.precision must be one of policy, bfloat16, auto"):
        NativeSampler(max_new_tokens=1, precision="int3")
    sampler = NativeSampler(max_new_tokens=1, precision="bfloat16")
    with pytest.raises(Refusal, match="ContextMLPPolicy"):
        sampler.check(ContextMLPPolicy(context_mlp()))
    with pytest.raises(Refusal, match="strategy=ddp"):
        sampler.check(policy, sharded=True)
    policy.spec = type("Spec", (), {"quantized": True, "name": "q"})()
    with pytest.raises(Refusal, match="quantized"):
        sampler.check(policy)

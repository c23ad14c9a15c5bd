"""The MLP policy against its own network, and the closed-form reference."""

import pytest
import torch

from lit_pref.functional.bandit import reference_probs
from lit_pref.functional.contexts import context_table
from lit_pref.policies.context_mlp import ClosedFormReference, ContextMLPPolicy, context_mlp
from lit_pref.policies.heads import freeze_output_layer
from lit_pref.policies.reference import FrozenReference, MovingReference
from lit_pref.sampling import NativeSampler
from lit_pref.types import FlatTokens, Group, Policy, Prompt, Refusal, Response


def tokens(pairs):
    groups = [
        Group(prompt=Prompt(id=c, text="", ids=[c]), responses=[Response(ids=[a]) for a in actions])
        for c, actions in pairs
    ]
    return FlatTokens.from_groups(groups)


@pytest.fixture
def policy():
    made = ContextMLPPolicy(context_mlp(seed=1)).load()
    with torch.no_grad():  # the published start is all but uniform; see something
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return made


def test_it_is_a_policy_of_the_papers_size(policy):
    assert isinstance(policy, Policy)
    sizes = [p.numel() for p in policy.parameters()]
    assert sum(sizes) == 100 * 50 + 50 + 100 + 50 * 256 + 256 + 256 * 256 + 256 + 256 * 100 + 100
    fresh = context_mlp().load()
    bound = 0.01 * (6 / (256 + 256)) ** 0.5
    assert 0.9 * bound < fresh.trunk[5].weight.abs().max() <= bound
    assert fresh.head.bias.abs().max() == 0


def test_log_probs_and_statistics_are_those_of_the_softmax(policy):
    flat = tokens([(7, [3, 99]), (1050, [0])])
    out = policy.token_logps(flat, stats=("entropy", "sum_squares", "hidden"))
    logps = policy.model(torch.tensor([7, 7, 1050])).log_softmax(-1)
    assert torch.equal(out.logps, logps[torch.arange(3), torch.tensor([3, 99, 0])])
    assert torch.allclose(out.entropy, -(logps.exp() * logps).sum(-1), atol=1e-5)
    assert torch.allclose(out.sum_squares, logps.exp().square().sum(-1))
    assert out.hidden.shape == (3, policy.hidden_size)
    out.logps.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())


def test_sampling_gives_the_same_log_probs(policy):
    groups = NativeSampler(max_new_tokens=1).sample(
        policy.eval(), [Prompt(id=c, text="", ids=[c]) for c in (0, 5, 900)],
        key=(0, "x"), occurrences=[0, 0, 0], responses=4,
    )  # fmt: skip
    scored = policy.token_logps(FlatTokens.from_groups(groups)).logps
    sampled = torch.tensor([r.behaviour_logps[0] for g in groups for r in g.responses])
    assert torch.allclose(scored, sampled, atol=1e-5)
    assert all(r.finished for g in groups for r in g.responses)


def test_a_copy_stands_still(policy):
    copy = policy.frozen_copy()
    before = copy.token_logps(tokens([(1, [2])])).logps.clone()
    with torch.no_grad():
        policy.model.head.weight.mul_(2)
    assert torch.equal(copy.token_logps(tokens([(1, [2])])).logps, before)
    assert not any(p.requires_grad for p in copy.parameters())


def test_the_table_is_fixed_and_not_in_checkpoints(policy):
    assert not any("table" in name for name in policy.state_dict())
    assert torch.equal(policy.model.table, context_table())
    assert 0 <= context_table().min() and context_table().max() < 1


def test_the_reference_is_the_closed_form():
    out = ClosedFormReference().token_logps(tokens([(3, [0, 70])]))
    assert torch.allclose(out.logps, reference_probs()[[0, 70]].log().float())


def test_export_holds_the_weights(policy, tmp_path):
    from safetensors.torch import load_file

    policy.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["head.weight"], policy.model.head.weight.detach())


def test_refusals(policy):
    with pytest.raises(Refusal, match="language model"):
        policy.token_logps(tokens([(1, [2])]), stats=("final_hidden",))
    with pytest.raises(Refusal, match="max_new_tokens"):
        policy.step(torch.tensor([1]), None)
    two = FlatTokens.from_groups(
        [Group(prompt=Prompt(id=0, text="", ids=[0, 1]), responses=[Response(ids=[1])])]
    )
    with pytest.raises(Refusal, match="contextual_bandit"):
        policy.token_logps(two)
    with pytest.raises(Refusal, match=r"model\.contexts"):
        context_mlp(contexts=1)
    with pytest.raises(Refusal, match="reference=frozen"):
        ClosedFormReference().token_logps(tokens([(1, [2])]), stats=("entropy",))


def test_it_cannot_be_a_reward_model(policy):
    with pytest.raises(Refusal, match="language model"):
        freeze_output_layer(policy)


def test_log_probs_of_its_reference_are_kept_on_disk_under_its_weights(policy, tmp_path):
    def folder(of):
        reference = FrozenReference(cache_dir=tmp_path)
        reference.prepare(of)
        return reference.cache(precision="32-true").folder

    before = folder(policy)
    assert folder(policy) == before
    with torch.no_grad():
        policy.model.head.bias[0] += 1
    assert folder(policy) != before
    wide = ContextMLPPolicy(context_mlp(contexts=1101))
    assert folder(wide) != folder(ContextMLPPolicy(context_mlp()))  # the same weights


def test_a_moving_reference_follows_it(policy):
    reference = MovingReference(mix=1.0)
    reference.prepare(policy)
    flat = tokens([(7, [3])])
    before = reference.token_logps(flat).logps
    with torch.no_grad():
        policy.model.head.bias[3] += 1
    assert torch.equal(reference.token_logps(flat).logps, before)
    reference.advance(policy, 1)
    assert torch.equal(reference.token_logps(flat).logps, policy.token_logps(flat).logps.detach())

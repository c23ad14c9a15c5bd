"""Every family of objectives on random groups: all savings on, all off, each alone.

The same as ``test_property``, with the library's own losses and the way that batches really go:
rounds are annotated, cut into micro-batches and put through the code that trains.
"""

from functools import partial

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.engine import forward as forward_module
from lit_pref.engine.head import head_stats
from lit_pref.objectives import DPO, GRPO, KTO, PPO, SFT, RewardModel, SimPO
from lit_pref.policies import FrozenReference, HFPolicy, ScalarHead
from lit_pref.policies.spec import ModelSpec
from lit_pref.testing.batches import (
    StandInTrainer,
    fill_sampled,
    gradients,
    make_batch,
    make_round,
    whole_loss,
)
from lit_pref.types import Group, Prompt, Response

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 53,
         "intermediate_size": 24, "max_position_embeddings": 448}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=1),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SMALL),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **SMALL, num_key_value_heads=1, head_dim=8, sliding_window=21,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip
FAMILIES = {
    "supervised": lambda policy: SFT(policy),
    "pairwise": lambda policy: DPO(policy, reference=FrozenReference(), pairs="all"),
    "weighted pairs": lambda policy: DPO(policy, reference=FrozenReference(), weighting="wpo"),
    "reference-free": lambda policy: SimPO(policy),
    "unpaired": lambda policy: KTO(policy, reference=FrozenReference()),
    "policy gradient": lambda policy: GRPO(
        policy, reference=FrozenReference(), kl_coef=0.1, entropy_coef=0.05
    ),
    "with a critic": lambda policy: PPO(
        policy, critic=ScalarHead(init="normal"), reference=FrozenReference(), kl_coef=0.1
    ),
    "score": lambda policy: RewardModel(policy),
}
SWITCHES = {
    "packed": {"path": "packed"},
    "chunked": {"chunked": True},
    "micro": {"budget": 90},
    "recompute": {"recompute": True},
    "all": {"path": "packed", "chunked": True, "budget": 90, "recompute": True},
}


def policy(name, path, recompute):
    def load():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float64)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2.0)
        return model

    spec = ModelSpec(
        name=name, tokenizer=None, eos_ids=(), pad_id=0, context_length=448, vocab_size=53,
        load=load, fingerprint=name,
    )  # fmt: skip
    return HFPolicy(spec, path=path, gradient_checkpointing=recompute)


def groups_of(sizes, seed, *, shared):
    """``sizes``: prompt length and response lengths; not shared: a group for each pair."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(1, 53, (n,), generator=draw).tolist()

    out = []
    for prompt, lengths in sizes:
        asked = ids(prompt)
        members = [
            Response(
                ids=ids(n), behaviour="policy", reward=float(torch.rand(1, generator=draw)),
                label=bool(k % 2),
            )
            for k, n in enumerate(lengths)
        ]  # fmt: skip
        step = len(members) if shared else 2
        parts = [members[i : i + step] for i in range(0, len(members), step)]
        out += [
            Group(prompt=Prompt(id=len(out) + i, text="", ids=asked), responses=part,
                  source="onpolicy")
            for i, part in enumerate(parts)
        ]  # fmt: skip
    return out


def measure(family, name, groups, *, path="padded", chunked=False, budget=None, recompute=False):
    """Loss and gradient of a batch after the policy has moved on from its round."""
    head = partial(head_stats, budget_bytes=53 * 4 * 64) if chunked else head_stats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward_module, "head_stats", head)
        module = FAMILIES[family](policy(name, path, recompute)).double()
        module.trainer = StandInTrainer()
        module.configure_model()
        assert module.policy.path == path
        fill_sampled(module, groups)
        round = make_round(module, groups)
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in module.policy.parameters():
                p += 0.05 * p.std() * torch.randn(p.shape, generator=draw, dtype=p.dtype)
        module.train()
        batch = make_batch(round, micro_batch_tokens=budget)
        return whole_loss(module, batch), gradients(module, batch)


def compare(family, name, sizes, seed, shared):
    groups = partial(groups_of, sizes, seed, shared=shared)
    loss, wanted = measure(family, name, groups())
    assert wanted.norm() > 0
    for switch, options in SWITCHES.items():
        found, grads = measure(family, name, groups(), **options)
        assert found == pytest.approx(loss, rel=1e-5, abs=1e-5), switch
        assert (grads - wanted).norm() <= 1e-5 * wanted.norm(), switch


def sizes(longest, most, groups):
    pairs = st.integers(1, most // 2).flatmap(
        lambda k: st.lists(st.integers(1, longest), min_size=2 * k, max_size=2 * k)
    )
    group = st.tuples(st.integers(1, longest), pairs)
    return st.lists(group, min_size=1, max_size=groups)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    name=st.sampled_from(sorted(CONFIGS)), sizes=sizes(40, 6, 2), seed=st.integers(0, 99),
    shared=st.booleans(),
)  # fmt: skip
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
def test_savings_change_no_family(family, name, sizes, seed, shared):
    compare(family, name, sizes, seed, shared)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@given(
    name=st.sampled_from(sorted(CONFIGS)), sizes=sizes(200, 16, 3), seed=st.integers(0, 999),
    shared=st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_savings_change_no_family_over_many_batches(family, name, sizes, seed, shared):
    compare(family, name, sizes, seed, shared)

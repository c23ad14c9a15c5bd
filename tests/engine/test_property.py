"""Random batches: all savings on, all off, each alone give the same numbers and gradients.

Weights are float64, but norms and rotations of these models compute in float32: hence 1e-5.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.engine import forward as forward_module
from lit_pref.engine.forward import hf_token_stats, micro_batches
from lit_pref.engine.head import head_stats
from lit_pref.functional.segments import segment_sum
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 53,
         "intermediate_size": 24, "max_position_embeddings": 448}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=1),
    "gpt2": lambda: tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=53, n_positions=448,
                                 bos_token_id=None, eos_token_id=None),
    "mistral": lambda: tf.MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=37),
    "gemma2": lambda: tf.Gemma2Config(
        **SMALL, num_key_value_heads=1, head_dim=8, sliding_window=50, final_logit_softcapping=3.0
    ),
}  # fmt: skip
SWITCHES = {
    "packed": {"path": "packed"},
    "chunked": {"chunked": True},
    "micro": {"budget": 300},
    "recompute": {"recompute": True},
    "all": {"path": "packed", "chunked": True, "budget": 300, "recompute": True},
}
WEIGHTS = {
    "supervised": 1.0,
    "pairwise": 1.7,
    "unpaired": -0.6,
    "policy_gradient": 0.9,
    "score": 2.3,
}
"""Families, and the weight of each in the one loss whose gradient is compared."""


def policy(name, *, recompute=False):
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
    return HFPolicy(spec, gradient_checkpointing=recompute).load().train()


def batch(sizes, seed):
    """``sizes``: prompt length and response lengths of each prompt."""
    draw = torch.Generator().manual_seed(seed)
    prompts = [p for p, _ in sizes]
    lengths = [n for _, responses in sizes for n in responses]
    owners = [i for i, (_, responses) in enumerate(sizes) for _ in responses]
    ids = torch.randint(1, 53, (sum(prompts) + sum(lengths),), generator=draw)
    return FlatTokens(ids[: sum(prompts)], prompts, ids[sum(prompts) :], lengths, owners)


def losses(out, part, index, everything):
    """The part of each family's loss that these responses have; divided by whole counts."""
    total, count = sum(everything.lengths), everything.num_responses
    logps, owner = out.logps, part.owner()
    sums = segment_sum(logps, owner, part.num_responses)
    place = torch.tensor(index)
    advantage = torch.cos(place.double())
    same = torch.tensor(part.prompt_of)
    later = (same[1:] == same[:-1]).nonzero()[:, 0]  # neighbours in a group make a pair
    ratio = (logps + 4.0).exp()
    clipped = torch.minimum(ratio * advantage[owner], ratio.clamp(0.8, 1.2) * advantage[owner])
    head = torch.linspace(-1, 1, out.final_hidden.shape[-1], dtype=torch.float64)
    scores = out.final_hidden @ head
    return {
        "supervised": -logps.sum() / total,
        "pairwise": -F.logsigmoid(0.1 * (sums[later] - sums[later + 1])).sum() / count,
        "unpaired": torch.sigmoid(0.05 * advantage.sign() * (sums + 200)).sum() / count,
        "policy_gradient": -clipped.sum() / total - 0.01 * out.entropy.sum() / total,
        "score": -F.logsigmoid(scores[later] - scores[later + 1]).sum() / count,
    }  # fmt: skip


def measure(name, flat, *, path="padded", chunked=False, budget=None, recompute=False):
    """Log-probs in order, the loss of each family, and the gradient of their weighted sum."""
    made = policy(name, recompute=recompute)
    head = partial(head_stats, budget_bytes=53 * 4 * 64) if chunked else head_stats
    pieces = list(torch.zeros(sum(flat.lengths), dtype=torch.float64).split(flat.lengths))
    values = dict.fromkeys(WEIGHTS, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward_module, "head_stats", head)
        for index in micro_batches(flat, budget):
            part = flat.select(index)
            out = hf_token_stats(
                made.model, part, path=path, plain_head=made.plain_head,
                stats=("entropy", "final_hidden"),
            )  # fmt: skip
            found = losses(out, part, index, flat)
            sum(found[family] * weight for family, weight in WEIGHTS.items()).backward()
            for family, value in found.items():
                values[family] += float(value.detach())
            for i, piece in zip(index, out.logps.split(part.lengths), strict=True):
                pieces[i] = piece.detach()
    grads = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
    return torch.cat(pieces), values, torch.cat(grads)


LENGTH = st.one_of(st.integers(1, 12), st.integers(1, 200))
GROUP = st.tuples(
    st.integers(1, 200), st.one_of(st.integers(1, 4), st.integers(1, 16)).flatmap(
        lambda k: st.lists(LENGTH, min_size=k, max_size=k)
    ),
)  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@given(sizes=st.lists(GROUP, min_size=1, max_size=2), seed=st.integers(0, 99))
@settings(max_examples=2, deadline=None, derandomize=True, database=None)
def test_savings_change_nothing(name, sizes, seed):
    compare(name, sizes, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@given(sizes=st.lists(GROUP, min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_savings_change_nothing_over_many_batches(name, sizes, seed):
    compare(name, sizes, seed)


def compare(name, sizes, seed):
    flat = batch(sizes, seed)
    expected, values, wanted = measure(name, flat)
    for switch, options in SWITCHES.items():
        logps, found, grads = measure(name, flat, **options)
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
        for family in WEIGHTS:
            assert found[family] == pytest.approx(values[family], abs=1e-5), (switch, family)
        assert (grads - wanted).norm() <= 1e-5 * wanted.norm(), switch

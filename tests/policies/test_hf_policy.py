"""Export and reload, the chosen path, and what a frozen copy is."""

import pytest
import torch
import transformers as tf

from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano, tiny
from lit_pref.types import FlatTokens


def some_tokens():
    ids = torch.arange(1, 9)
    return FlatTokens(ids[:3], [3], ids[3:], [3, 2], [0, 0])


@pytest.mark.parametrize("make", [tiny, gpt_nano])
def test_export_loads_and_gives_the_same_logits(make, tmp_path):
    policy = HFPolicy(make()).load()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    policy.save_pretrained(str(tmp_path))
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
    if policy.spec.tokenizer is not None:
        tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer("hello")["input_ids"] == policy.spec.tokenizer("hello")["input_ids"]
        assert tokenizer.chat_template == policy.spec.tokenizer.chat_template


def test_loading_twice_and_initialising_once():
    calls = []
    policy = HFPolicy(gpt_nano(), initialise=calls.append)
    assert policy.load().model is policy.load().model
    assert len(calls) == 1


def test_a_frozen_copy_stays_while_the_policy_moves():
    policy = HFPolicy(tiny()).load()
    reference = FrozenReference()
    reference.prepare(policy)
    before = reference.token_logps(some_tokens()).logps
    assert torch.equal(before, policy(some_tokens()).logps.detach())
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.5)
    reference.prepare(policy)  # does nothing the second time
    assert torch.equal(reference.token_logps(some_tokens()).logps, before)
    assert not any(p.requires_grad for p in reference.copy.parameters())


def test_dropout_is_off_even_in_train_mode():
    config = tf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
    assert config.resid_pdrop > 0
    spec = gpt_nano()
    spec.load = lambda: tf.GPT2LMHeadModel(config)
    policy = HFPolicy(spec).load().train()
    assert torch.equal(policy(some_tokens()).logps, policy(some_tokens()).logps)


def test_asking_for_packed_rows_where_they_do_not_work_is_an_error():
    config = tf.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=100)
    spec = gpt_nano()
    spec.load = lambda: tf.BloomForCausalLM(config)
    with pytest.raises(ValueError, match="path=padded"):
        HFPolicy(spec, path="packed").load()

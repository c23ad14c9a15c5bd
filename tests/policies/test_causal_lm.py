"""Export and reload, the chosen path, and what a frozen copy is."""

import pytest
import torch
import transformers as tf

from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano, hf, tiny
from lit_pref.types import FlatTokens, Refusal


def some_tokens():
    ids = torch.arange(1, 9)
    return FlatTokens(ids[:3], [3], ids[3:], [3, 2], [0, 0])


def tied():
    """``tiny`` with one matrix for the embedding and the head."""
    spec = tiny()
    plain = spec.load

    def load():
        model = plain()
        model.config.tie_word_embeddings = True
        model.tie_weights()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        return model

    spec.load = load
    return spec


@pytest.mark.parametrize("make", [tiny, tied, gpt_nano])
def test_export_loads_and_gives_the_same_logits(make, tmp_path):
    policy = HFPolicy(make()).load()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    policy.save_pretrained(str(tmp_path))
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared == (make is tied)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
    if policy.spec.tokenizer is not None:
        tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer("hello")["input_ids"] == policy.spec.tokenizer("hello")["input_ids"]
        assert tokenizer.chat_template == policy.spec.tokenizer.chat_template


@pytest.mark.parametrize("shown", [True, False])
def test_no_progress_bars_at_export_and_loading(shown, tmp_path, capfd):
    switch = tf.utils.logging
    before = switch.is_progress_bar_enabled()
    (switch.enable_progress_bar if shown else switch.disable_progress_bar)()
    try:
        HFPolicy(tiny()).load().save_pretrained(str(tmp_path))
        HFPolicy(hf(tmp_path)).load()
        assert switch.is_progress_bar_enabled() == shown
    finally:
        (switch.enable_progress_bar if before else switch.disable_progress_bar)()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_survives_the_round_trip(dtype, tmp_path):
    HFPolicy(tiny()).load().save_pretrained(str(tmp_path / "one"))
    policy = HFPolicy(hf(tmp_path / "one", dtype=dtype)).load()
    assert policy.path == "auto"
    found = policy(some_tokens()).logps
    assert found.dtype == torch.float32
    policy.save_pretrained(str(tmp_path / "two"))
    again = HFPolicy(hf(tmp_path / "two", dtype=dtype)).load()
    assert torch.equal(again(some_tokens()).logps, found)
    ids = [[1, 2, 3], [4]]
    logits, state = again.eval().prefill(ids, 2)
    assert logits.shape == (4, again.spec.vocab_size)
    again.step(torch.tensor([5, 6, 7, 8]), state)


def test_an_export_tells_nothing_of_how_the_model_was_run(tmp_path):
    policy = HFPolicy(tiny(), gradient_checkpointing=True).load()
    config = policy.model.config
    policy.save_pretrained(str(tmp_path))
    assert policy.model.config is config
    text = (tmp_path / "config.json").read_text()
    assert "lit_pref" not in text and str(tmp_path) not in text


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


DROPS = {
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32),
    "opt": lambda: tf.OPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, vocab_size=50, ffn_dim=32,
        max_position_embeddings=32, word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.2,
        layerdrop=0.5,
    ),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, vocab_size=50, max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]], window_size=8, resid_dropout=0.3,
        embed_dropout=0.3, attention_dropout=0.3, bos_token_id=1, eos_token_id=2,
    ),
    "phi": lambda: tf.PhiConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=50, resid_pdrop=0.3, embd_pdrop=0.3, attention_dropout=0.3,
    ),
    "falcon": lambda: tf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        hidden_dropout=0.3, attention_dropout=0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPS)
def test_dropout_is_off_even_in_train_mode(name):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(DROPS[name]()).train()
    ids = torch.arange(1, 9)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)  # it has dropout
    evaluated = model.eval()(ids).logits
    spec = gpt_nano()
    spec.load = lambda: model
    policy = HFPolicy(spec).load().train()
    assert torch.equal(policy(some_tokens()).logps, policy(some_tokens()).logps)
    torch.testing.assert_close(model(ids).logits, evaluated, atol=1e-5, rtol=1e-5)


def test_asking_for_packed_rows_where_they_do_not_work_is_an_error():
    config = tf.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=100)
    spec = gpt_nano()
    spec.load = lambda: tf.BloomForCausalLM(config)
    with pytest.raises(Refusal, match="path=padded"):
        HFPolicy(spec, path="packed").load()

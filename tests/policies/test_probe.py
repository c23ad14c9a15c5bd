"""Packed rows are used only where they are right, in every precision."""

from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from lit_pref.engine import attention
from lit_pref.engine.head import declared_form
from lit_pref.policies.probe import head_is_plain, packed_misfit
from lit_pref.policies.spec import ModelSpec

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
         "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8, sliding_window=6),
    "mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=5),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model_of(config, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def misfit(model):
    spec = ModelSpec(
        name="small", tokenizer=None, eos_ids=(), pad_id=0, context_length=64, vocab_size=61,
        load=lambda: model, fingerprint="small",
    )  # fmt: skip
    return packed_misfit(model, spec, plain_head=head_is_plain(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_right_rows_fit(name, dtype):
    assert misfit(model_of(CONFIGS[name](), dtype)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_siblings_in_sight_do_not_fit(name, dtype, monkeypatch):
    """Even in a random model, whose log-probs hardly depend on what it sees."""
    right = attention._packed

    def one_sequence(query, key, value, layout, *rest):
        held, layout.segments = layout.segments, [(query.shape[2], [])]
        out = right(query, key, value, layout, *rest)
        layout.segments = held
        return out

    monkeypatch.setattr(attention, "_packed", one_sequence)
    model = model_of(CONFIGS[name](), dtype)
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert "hidden states differ" in misfit(model)
        assert torch.equal(model(input_ids=ids).logits, before)  # its attention is back


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_positions_do_not_fit(name, monkeypatch):
    from lit_pref.engine import forward

    right = forward.packed_inputs

    def one_count(layout):
        count = torch.arange(layout.input_ids.shape[1])[None]
        return {**right(layout), "position_ids": count}

    monkeypatch.setattr(forward, "packed_inputs", one_count)
    assert "hidden states differ" in misfit(model_of(CONFIGS[name]()))


def test_a_window_too_long_to_try_must_reach_the_attention(monkeypatch):
    model = model_of(tf.MistralConfig(**SMALL, sliding_window=4096))
    assert misfit(model) is None
    for layer in model.model.layers:  # as in a model that keeps its window in the mask alone
        layer.self_attn.sliding_window = None
        layer.self_attn.config = tf.MistralConfig(**SMALL, sliding_window=None)
        layer.self_attn.config._attn_implementation = attention.NAME
    assert "window of 4096" in misfit(model)


def test_layers_of_unknown_reach_do_not_fit():
    config = tf.Llama4TextConfig(
        **SMALL, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, pad_token_id=0
    )
    assert config.attention_chunk_size > 4096  # far beyond a few tokens
    assert "chunked_attention" in misfit(model_of(config))


def test_heads():
    assert head_is_plain(model_of(CONFIGS["llama"]()))
    assert head_is_plain(model_of(CONFIGS["gpt2"]()))
    assert head_is_plain(model_of(CONFIGS["gemma2"]()))  # soft-capped at 30
    assert head_is_plain(
        model_of(tf.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5))
    )
    assert head_is_plain(model_of(tf.CohereConfig(**SMALL, logit_scale=0.0625)))
    assert head_is_plain(model_of(tf.GraniteConfig(**SMALL, logits_scaling=4.0)))
    assert head_is_plain(model_of(tf.GraniteConfig(**SMALL, logits_scaling=1.0)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (lambda: tf.Gemma2Config(**SMALL, head_dim=8), {"final_logit_softcapping": 20.0}),
        (lambda: tf.Gemma2Config(**SMALL, head_dim=8), {"final_logit_softcapping": None}),
        (lambda: tf.CohereConfig(**SMALL), {"logit_scale": 0.07}),
        (lambda: tf.GraniteConfig(**SMALL, logits_scaling=4.0), {"logits_scaling": 1.0}),
        (lambda: tf.LlamaConfig(**SMALL), {"final_logit_softcapping": 30.0}),
        (lambda: tf.LlamaConfig(**SMALL), {"logit_scale": 0.5}),
    ],
)
def test_a_head_that_does_other_than_its_config_says_is_left_to_the_model(
    right, wrong, dtype, monkeypatch
):
    model = model_of(right(), dtype)
    assert head_is_plain(model)
    said = model.config.to_dict() | wrong

    def declared(config):
        return declared_form(SimpleNamespace(get_text_config=lambda: SimpleNamespace(**said)))

    monkeypatch.setattr("lit_pref.policies.probe.declared_form", declared)
    assert not head_is_plain(model)

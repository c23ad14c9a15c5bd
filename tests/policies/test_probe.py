"""Packed rows are used only where they are right, in every precision."""

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from lit_pref.engine import attention
from lit_pref.engine.head import declared_form
from lit_pref.engine.kv_cache import SharedCache
from lit_pref.engine.layout import PackedLayout
from lit_pref.policies import HFPolicy, LoRA, probe, tiny
from lit_pref.policies.models import random_model
from lit_pref.policies.probe import decoding_misfit, head_is_plain, packed_misfit
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
         "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8, sliding_window=6),
    "mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=5),
    "gpt2": lambda: tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64, bos_token_id=None,
        eos_token_id=None,
    ),
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model_of(config, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()


SPEC = ModelSpec(
    name="small", tokenizer=None, eos_ids=(), pad_id=0, context_length=64, vocab_size=61,
    load=lambda: None, fingerprint="small",
)  # fmt: skip


def misfit(model):
    return packed_misfit(model, SPEC, plain_head=head_is_plain(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_right_rows_fit(name, dtype):
    assert misfit(model_of(CONFIGS[name](), dtype)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_siblings_in_sight_do_not_fit(name, dtype, monkeypatch):
    """Even in a random model, whose log-probs hardly depend on what it sees."""
    siblings_in_sight(monkeypatch)
    model = model_of(CONFIGS[name](), dtype)
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert "hidden states differ" in misfit(model)
        assert torch.equal(model(input_ids=ids).logits, before)  # its attention is back


def siblings_in_sight(monkeypatch):
    right = attention._packed

    def one_sequence(query, key, value, layout, *rest):
        held, layout.segments = layout.segments, [(query.shape[2], [])]
        out = right(query, key, value, layout, *rest)
        layout.segments = held
        return out

    monkeypatch.setattr(attention, "_packed", one_sequence)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_policy_with_a_wrong_attention_falls_back_with_one_line(name, monkeypatch, caplog):
    spec = random_model(name, CONFIGS[name](), seed=0)
    flat = FlatTokens(torch.arange(1, 5), [4], torch.arange(5, 60), [30, 25], [0, 0])
    wanted = HFPolicy(spec, path="padded").load()(flat).logps
    siblings_in_sight(monkeypatch)
    with caplog.at_level(logging.INFO):
        policy = HFPolicy(spec).load()
    assert policy.path == "padded" and not policy.shared_decoding
    assert [r.message.split(":")[1] for r in caplog.records if r.name.startswith("lit_pref")] == [
        " padded forward (packed rows do not apply"
    ]
    assert torch.equal(policy(flat).logps, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_right_forward_with_a_wrong_gradient_does_not_fit(name, dtype, monkeypatch):
    """Responses whose loss does not reach the keys and values of their prompt."""
    right = attention._attend

    def deaf(query, key, value, *rest):
        past = key.shape[2] - query.shape[2]
        key, value = (torch.cat([x[:, :, :past].detach(), x[:, :, past:]], 2) for x in (key, value))
        return right(query, key, value, *rest)

    monkeypatch.setattr(attention, "_attend", deaf)
    model = model_of(CONFIGS[name](), dtype)
    assert "gradient differ" in misfit(model)
    assert all(p.grad is None for p in model.parameters())


FAR = {
    "mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=4096),
    "qwen2": lambda: tf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=4096, max_window_layers=1
    ),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8, sliding_window=4096),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=512, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: tf.Phi3Config(**SMALL, sliding_window=2047, pad_token_id=0),
    "cohere2": lambda: tf.Cohere2Config(**SMALL, sliding_window=4096),
    "gpt_oss": lambda: tf.GptOssConfig(
        **SMALL, head_dim=8, sliding_window=128, num_local_experts=4, num_experts_per_tok=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_windows_are_passed_however_wide_they_are(name, monkeypatch):
    model = model_of(FAR[name]())
    assert misfit(model) is None and decoding_misfit(model, SPEC) is None
    wide = model.config.sliding_window
    assert wide == FAR[name]().sliding_window
    assert {m.sliding_window for m in model.modules() if hasattr(m, "sliding_window")} <= {
        wide, None,
    }  # fmt: skip
    right = PackedLayout.mask

    def one_more(self, prompt, response, window, device):
        return right(self, prompt, response, window + 1 if window else 0, device)

    with monkeypatch.context() as patch:
        patch.setattr(PackedLayout, "mask", one_more)
        assert "hidden states differ" in misfit(model_of(FAR[name]()))
    bias = SharedCache._bias
    monkeypatch.setattr(SharedCache, "_bias", lambda s, w, *rest: bias(s, w and w + 1, *rest))
    assert "hidden states differ" in decoding_misfit(model, SPEC)


def test_a_window_that_no_layer_has_is_not_asked_for():
    config = tf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=16, max_window_layers=2
    )
    assert set(config.layer_types) == {"full_attention"} and config.sliding_window == 16
    assert misfit(model_of(config)) is None


def test_deep_random_models_have_a_gradient_to_compare():
    """Norms of a padding row of zeros would make it infinite, 1,000 times a layer."""
    config = tf.Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 24}, head_dim=8)
    model = model_of(config)
    assert not model.get_input_embeddings().weight[model.config.pad_token_id].any()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    measured = probe._measured(
        model, SPEC, probe._tokens(SPEC, model), "padded", True, probe._witness(model)
    )
    assert measured["gradient"].isfinite().all() and measured["gradient"].any()


def test_what_cannot_train_is_probed_without_a_gradient():
    with torch.inference_mode():
        model = model_of(CONFIGS["llama"]())
        assert misfit(model) is None
    frozen = model_of(CONFIGS["llama"]()).requires_grad_(False)
    assert misfit(frozen) is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_have_a_gradient_to_compare(name):
    pytest.importorskip("peft")
    policy = HFPolicy(random_model(name, CONFIGS[name](), seed=0), lora=LoRA(rank=2)).load()
    assert policy.path == "auto"
    witness = probe._witness(policy.model)
    (found,) = [n for n, p in policy.named_parameters() if p is witness]
    assert "lora_B" in found


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_with_shared_prompts_fits(name, dtype):
    model = model_of(CONFIGS[name](), dtype)
    assert misfit(model) is None
    assert decoding_misfit(model, SPEC) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_that_forgets_the_prompt_falls_back(name, monkeypatch):
    right = SharedCache._of_prompts

    def forgetful(self, x, matrix, places):
        return right(self, x, torch.zeros_like(matrix), places)

    monkeypatch.setattr(SharedCache, "_of_prompts", forgetful)
    model = model_of(CONFIGS[name]())
    assert misfit(model) is None
    assert "hidden states differ" in decoding_misfit(model, SPEC)


def test_decoding_that_is_refused_falls_back(monkeypatch):
    def refuse(*args, **options):
        raise ValueError("no such attention")

    monkeypatch.setattr(SharedCache, "attend", refuse)
    policy = HFPolicy(tiny()).load()
    assert policy.path == "auto" and not policy.shared_decoding
    logits, state = policy.prefill([[1, 2], [3]], 2)
    policy.step(torch.tensor([5, 6, 7, 8]), state)
    assert logits.shape[0] == 4

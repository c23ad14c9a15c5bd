"""Packed, padded and chunked forwards agree, in log-probs and gradients, over architectures."""

import pytest
import torch
import transformers as tf

from lit_pref.engine import head as head_module
from lit_pref.engine.forward import hf_token_stats, micro_batches
from lit_pref.engine.head import chunked_logps, logit_stats
from lit_pref.engine.layout import pack, pad, prefer_packed
from lit_pref.policies.hf import HFPolicy
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
GQA = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**GQA),
    "llama_tied": lambda: tf.LlamaConfig(**GQA, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**GQA),
    "qwen3": lambda: tf.Qwen3Config(**GQA, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**GQA),
    "mistral_window": lambda: tf.MistralConfig(**GQA, sliding_window=5),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SMALL),
    "gemma2": lambda: tf.Gemma2Config(**GQA, head_dim=8, sliding_window=6),
    "olmo2": lambda: tf.Olmo2Config(**GQA),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61),
}
PADDED_ONLY = {"bloom"}
OWN_HEAD = {"gemma2"}  # soft-caps its logits


def policy(name, **options):
    def load():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]())
        with torch.no_grad():  # far from uniform, so that a wrong token shows
            for p in model.parameters():
                p.mul_(3.0)
        return model.float()

    spec = ModelSpec(
        name=name, tokenizer=None, eos_ids=(), pad_id=0, context_length=64, vocab_size=61,
        load=load, fingerprint=name,
    )  # fmt: skip
    return HFPolicy(spec, **options).load()


def tokens(lengths=((3, (4, 1, 6)), (5, (2,)), (1, (3, 7))), seed=0):
    """(prompt length, response lengths) of each prompt."""
    draw = torch.Generator().manual_seed(seed)
    prompts = [p for p, _ in lengths]
    answers = [n for _, responses in lengths for n in responses]
    owners = [i for i, (_, responses) in enumerate(lengths) for _ in responses]
    ids = torch.randint(1, 61, (sum(prompts) + sum(answers),), generator=draw)
    return FlatTokens(ids[: sum(prompts)], prompts, ids[sum(prompts) :], answers, owners)


def by_hand(model, tokens):
    """Log-probs of each response in a plain forward of its own, no padding."""
    out = []
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    for ids, p in zip(tokens.response_ids.split(tokens.lengths), tokens.prompt_of, strict=True):
        row = torch.cat([prompts[p], ids])[None]
        logps = model(input_ids=row, use_cache=False).logits[0].float().log_softmax(-1)
        start = len(prompts[p]) - 1
        at = logps[start : start + len(ids)]
        out.append(at.gather(-1, ids[:, None])[:, 0])
    return torch.cat(out)


def gradient(module, loss):
    module.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_path_is_the_plain_forward(name):
    made = policy(name)
    assert (made.path == "padded") == (name in PADDED_ONLY)
    assert made.plain_head == (name not in OWN_HEAD)
    flat = tokens()
    weights = torch.linspace(-1, 1, len(flat.response_ids))
    expected = by_hand(made.model, flat)
    wanted = gradient(made, (expected * weights).sum())
    for path in ["padded"] if name in PADDED_ONLY else ["padded", "packed"]:
        found = hf_token_stats(made.model, flat, path=path, plain_head=made.plain_head).logps
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        grad = gradient(made, (found * weights).sum())
        assert (grad - wanted).norm() / wanted.norm() < 1e-5, path


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window"])
def test_micro_batches_chunks_and_checkpointing_together(name, monkeypatch):
    plain = policy(name)
    flat = tokens()
    weights = torch.linspace(-1, 1, len(flat.response_ids))
    wanted = gradient(plain, (by_hand(plain.model, flat) * weights).sum())
    monkeypatch.setattr(head_module, "BUDGET_BYTES", 61 * 4 * 2)
    monkeypatch.setattr(chunked_logps, "__kwdefaults__", {"budget_bytes": 61 * 4 * 2})
    made = policy(name, path="packed", gradient_checkpointing=True)
    made.train()
    parts = weights.split(flat.lengths)
    made.zero_grad(set_to_none=True)
    for index in micro_batches(flat, 14):
        out = made(flat.select(index))
        (out.logps * torch.cat([parts[i] for i in index])).sum().backward()
    found = torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_chunked_head_equals_the_whole_one():
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight, bias = torch.randn(31, 8, requires_grad=True), torch.randn(31, requires_grad=True)
    targets = torch.randint(0, 31, (13,))
    results = []
    for budget in (10**9, 31 * 4 * 3):
        out = chunked_logps(hidden, weight, bias, targets, budget_bytes=budget)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (hidden, weight, bias))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_statistics_are_what_they_say():
    made = policy("llama")
    flat = tokens()
    names = ("entropy", "sum_squares", "hidden", "final_hidden")
    for path in ("padded", "packed"):
        out = hf_token_stats(made.model, flat, path=path, stats=names)
        at = start = 0
        prompts = flat.prompt_ids.split(flat.prompt_lengths)
        for i, (ids, p) in enumerate(
            zip(flat.response_ids.split(flat.lengths), flat.prompt_of, strict=True)
        ):
            row = torch.cat([prompts[p], ids])[None]
            hidden = made.model.base_model(input_ids=row).last_hidden_state[0]
            first = len(prompts[p]) - 1
            before = hidden[first : first + len(ids)]
            probs = made.model.lm_head(before).softmax(-1)
            part = slice(at, at + len(ids))
            torch.testing.assert_close(out.hidden[part], before, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(out.final_hidden[i], hidden[-1], atol=1e-5, rtol=1e-4)
            entropy = -(probs * probs.log()).sum(-1)
            torch.testing.assert_close(out.entropy[part], entropy, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                out.sum_squares[part], probs.square().sum(-1), atol=1e-5, rtol=1e-4
            )
            at += len(ids)
        assert start == 0


def test_unknown_statistics_are_an_error():
    with pytest.raises(ValueError, match="entropy, sum_squares"):
        hf_token_stats(policy("llama").model, tokens(), stats=("logits",))


def test_logit_stats_by_hand():
    # probabilities 1/4, 3/4
    logits = torch.tensor([[0.0, torch.tensor(3.0).log()]])
    logps, entropy, squares = logit_stats(logits, torch.tensor([1]), entropy=True, sum_squares=True)
    assert logps.item() == pytest.approx(-0.2876821)  # log(3/4)
    assert entropy.item() == pytest.approx(0.5623351)  # log 4 - 3/4 log 3
    assert squares.item() == pytest.approx(10 / 16)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_empty_responses_and_one_token_prompts(path):
    made = policy("llama")
    flat = tokens(((1, (0, 3)), (2, (0,)), (4, (1, 1))))
    found = hf_token_stats(made.model, flat, path=path).logps
    kept = flat.select([1, 3, 4])
    torch.testing.assert_close(found, by_hand(made.model, kept), atol=1e-5, rtol=1e-5)


def test_half_precision_weights_score_in_float32():
    made = policy("llama")
    exact = made(tokens()).logps
    made.model.to(torch.bfloat16)
    found = made(tokens()).logps
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1.0


def test_layouts_by_hand():
    # prompt [1, 2] with responses [3, 4, 5] and [6]; prompt [7] with [8, 9]
    flat = FlatTokens(
        torch.tensor([1, 2, 7]), [2, 1], torch.tensor([3, 4, 5, 6, 8, 9]), [3, 1, 2], [0, 0, 1]
    )
    packed = pack(flat)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 7, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert packed.rows.tolist() == [1, 2, 3, 1, 4, 5]
    assert packed.segments == [(2, [2, 0]), (1, [1])]
    whole = pack(flat, final=True)
    assert whole.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert whole.final.tolist() == [4, 5, 8]
    padded = pad(flat)
    assert padded.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0], [7, 8, 0, 0]]
    assert padded.rows.tolist() == [1, 2, 3, 5, 8, 9]


def test_many_short_equal_responses_are_padded_and_long_ones_packed():
    assert not prefer_packed(tokens(((1, (9,) * 10),) * 10))
    assert prefer_packed(tokens(((20, (30, 10)),) * 4))


@pytest.mark.parametrize("whole", [True, False])
def test_micro_batches_hold_every_response_once_within_the_budget(whole):
    flat = tokens(((3, (4, 1, 6)), (5, (2,)), (1, (3, 7)), (2, (20, 20))))
    for budget in (1, 12, 30, 1000, None):
        parts = list(micro_batches(flat, budget, whole_prompts=whole))
        assert sorted(i for part in parts for i in part) == list(range(8))
        for part in parts:
            units = {flat.prompt_of[i] for i in part} if whole else set(part)
            size = flat.select(part).num_tokens
            assert budget is None or size <= budget or len(units) == 1
        if whole:
            prompts = [flat.prompt_of[i] for part in parts for i in dict.fromkeys(part)]
            seen = [{flat.prompt_of[i] for i in part} for part in parts]
            assert sum(map(len, seen)) == len(set(prompts))

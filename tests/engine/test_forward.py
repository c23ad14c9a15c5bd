"""Packed, padded and chunked forwards agree, in log-probs and gradients, over architectures."""

import itertools
import warnings
from functools import partial

import pytest
import torch
import transformers as tf

from lit_pref.engine import forward as forward_module
from lit_pref.engine.forward import STATS, hf_token_stats, micro_batches
from lit_pref.engine.head import CHUNKS, head_stats, logit_stats
from lit_pref.engine.layout import pack, pad, prefer_packed
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens, Refusal

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
    "gemma2": lambda: tf.Gemma2Config(
        **GQA, head_dim=8, sliding_window=6, attn_logit_softcapping=0.5, final_logit_softcapping=2.0
    ),
    "qwen2_window": lambda: tf.Qwen2Config(
        **GQA, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **GQA, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: tf.Phi3Config(**GQA, sliding_window=6, pad_token_id=0),
    "cohere": lambda: tf.CohereConfig(**GQA),
    "opt": lambda: tf.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=61, ffn_dim=48,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    "olmo2": lambda: tf.Olmo2Config(**GQA),
    "granite": lambda: tf.GraniteConfig(**GQA, logits_scaling=4.0),
    "cohere2": lambda: tf.Cohere2Config(**GQA, sliding_window=6),
    "gpt_oss": lambda: tf.GptOssConfig(
        **GQA, head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2
    ),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61),
    "falcon": lambda: tf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **GQA, head_dim=8, attention_chunk_size=6, intermediate_size_mlp=48, num_local_experts=2,
        pad_token_id=0,
    ),
}  # fmt: skip
PADDED_ONLY = {"bloom", "falcon", "llama4"}
OWN_HEAD = {"llama4"}  # its inner model is not its base model


def make(name, *, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name](), **options)
    with torch.no_grad():  # far from uniform, so that a wrong token shows
        for p in model.parameters():
            p.mul_(3.0)
    return model.to(dtype)


def plain(name, **options):
    """The same weights with transformers' own attention, spelled out: what is to be met."""
    return make(name, attn_implementation="eager", **options).eval()


def policy(name, *, dtype=torch.float32, **options):
    spec = ModelSpec(
        name=name, tokenizer=None, eos_ids=(), pad_id=0, context_length=64, vocab_size=61,
        load=lambda: make(name, dtype=dtype), fingerprint=name,
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
    model = plain(name)
    expected = by_hand(model, flat)
    wanted = gradient(model, (expected * weights).sum())
    for path in ["padded"] if name in PADDED_ONLY else ["padded", "packed"]:
        found = hf_token_stats(made.model, flat, path=path, plain_head=made.plain_head).logps
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        grad = gradient(made, (found * weights).sum())
        assert (grad - wanted).norm() / wanted.norm() < 1e-5, path


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_micro_batches_chunks_and_checkpointing_together(name, recompute, chunked, monkeypatch):
    model = plain(name)
    flat = tokens()
    weights = torch.linspace(-1, 1, len(flat.response_ids))
    wanted = gradient(model, (by_hand(model, flat) * weights).sum())
    if chunked:  # logits of two tokens are kept, of more are made one token at a time
        small = partial(head_stats, budget_bytes=61 * 4 * 2)
        monkeypatch.setattr(forward_module, "head_stats", small)
    path = "padded" if name in PADDED_ONLY else "packed"
    made = policy(name, path=path, gradient_checkpointing=recompute)
    made.train()
    parts = weights.split(flat.lengths)
    made.zero_grad(set_to_none=True)
    for index in micro_batches(flat, 14):
        out = made(flat.select(index))
        (out.logps * torch.cat([parts[i] for i in index])).sum().backward()
    found = torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_checkpointing_runs_each_layer_again_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # a deprecated name of transformers
        made = policy("llama", path="packed", gradient_checkpointing=True).train()
    runs = []
    made.model.model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    out = made(tokens()).logps
    assert len(runs) == 1
    out.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2", "gpt_oss"])
def test_a_packed_response_sees_nothing_of_other_responses_and_prompts(name):
    made = policy(name)
    one, other = tokens(seed=0), tokens(seed=1)
    found = hf_token_stats(made.model, one, path="packed", plain_head=made.plain_head).logps
    for i, p in enumerate(one.prompt_of):  # keep response i and its prompt, change all else
        mixed = tokens(seed=1)
        start = sum(one.lengths[:i])
        kept = slice(start, start + one.lengths[i])
        mixed.response_ids[kept] = one.response_ids[kept]
        begin = sum(one.prompt_lengths[:p])
        prompt = slice(begin, begin + one.prompt_lengths[p])
        mixed.prompt_ids[prompt] = one.prompt_ids[prompt]
        again = hf_token_stats(made.model, mixed, path="packed", plain_head=made.plain_head).logps
        torch.testing.assert_close(again[kept], found[kept], atol=1e-6, rtol=1e-6)
        assert (again - found).abs().max() > 0.01
    assert not torch.equal(one.prompt_ids, other.prompt_ids)


BUDGETS = {"plain": 10**9, "kept": 13 * 31 * 4, "again": 31 * 4 * 9}


def test_the_head_is_the_same_within_any_memory_budget():
    draw = torch.Generator().manual_seed(0)
    shapes = {"hidden": (13, 8), "weight": (31, 8), "bias": (31,)}
    given = [
        torch.randn(s, generator=draw, dtype=torch.float64, requires_grad=True)
        for s in shapes.values()
    ]
    targets = torch.randint(0, 31, (13,), generator=draw)
    for flags in itertools.product([False, True], repeat=2):
        wanted = {"entropy": flags[0], "sum_squares": flags[1]}
        results = {}
        for name, budget in BUDGETS.items():
            out = head_stats(*given, targets, budget_bytes=budget, **wanted)
            assert [x is not None for x in out] == [True, *flags]
            kinds = type(out[0].grad_fn).__name__
            assert ("ChunkedHead" in kinds) == (name != "plain")
            loss = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(out) if x is not None)
            found = (*(x for x in out if x is not None), *torch.autograd.grad(loss, given))
            results[name] = found
        for name in ("kept", "again"):
            for a, b in zip(results["plain"], results[name], strict=True):
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_the_head_gives_no_gradient_to_what_is_frozen(frozen):
    given = {"hidden": torch.randn(5, 4), "weight": torch.randn(7, 4), "bias": torch.randn(7)}
    for name, tensor in given.items():
        tensor.requires_grad_(name != frozen)
    out = head_stats(*given.values(), torch.arange(5), entropy=True, budget_bytes=7 * 4 * 4)
    out[1].sum().backward()  # the entropies alone
    assert [name for name, t in given.items() if t.grad is None] == [frozen]


def stats_by_hand(model, tokens):
    """Entropy, sum of squares and hidden states of plain forwards, one response at a time."""
    entropy, squares, hidden, final = [], [], [], []
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    for ids, p in zip(tokens.response_ids.split(tokens.lengths), tokens.prompt_of, strict=True):
        row = torch.cat([prompts[p], ids])[None]
        at = slice(len(prompts[p]) - 1, len(prompts[p]) - 1 + len(ids))
        probs = model(input_ids=row, use_cache=False).logits[0, at].softmax(-1)
        entropy.append(-(probs * probs.log()).sum(-1))
        squares.append((probs * probs).sum(-1))
        states = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
        hidden.append(states[at])
        final.append(states[-1])
    return {
        "entropy": torch.cat(entropy),
        "sum_squares": torch.cat(squares),
        "hidden": torch.cat(hidden),
        "final_hidden": torch.stack(final),
    }


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2", "cohere2"])
def test_statistics_and_their_gradients_are_what_they_say(name, chunked, path, monkeypatch):
    if chunked:
        small = partial(head_stats, budget_bytes=61 * 4 * 2)
        monkeypatch.setattr(forward_module, "head_stats", small)
    made = policy(name)
    flat = tokens(((3, (4, 0, 6)), (5, (2,)), (1, (3, 7))))
    model = plain(name)
    expected = stats_by_hand(model, flat)
    out = hf_token_stats(made.model, flat, path=path, stats=STATS, plain_head=made.plain_head)
    draw = torch.Generator().manual_seed(3)
    losses = [by_hand(model, flat).sum(), out.logps.sum()]
    for key, value in expected.items():
        found = getattr(out, key)
        torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4)
        weights = torch.randn(value.shape, generator=draw)
        losses[0] = losses[0] + (value * weights).sum()
        losses[1] = losses[1] + (found * weights).sum()
    wanted, found = gradient(model, losses[0]), gradient(made, losses[1])
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_only_what_is_asked_for_is_computed():
    out = hf_token_stats(policy("gemma2").model, tokens(), plain_head=False, stats=("entropy",))
    assert out.hidden is None and out.final_hidden is None and out.sum_squares is None


def test_hidden_states_of_a_model_that_hides_them_are_refused():
    made = policy("llama4")
    with pytest.raises(Refusal, match="last hidden states"):
        made(tokens(), stats=("final_hidden",))


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
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2"])
def test_empty_responses_and_one_token_prompts(name, path):
    made = policy(name)
    flat = tokens(((1, (0, 3)), (2, (0,)), (4, (1, 1)), (1, (1,))))
    kept = flat.select([1, 3, 4, 5])
    model = plain(name)
    expected = by_hand(model, kept)
    wanted = gradient(model, expected.sum())
    out = hf_token_stats(made.model, flat, path=path, plain_head=made.plain_head)
    torch.testing.assert_close(out.logps, expected, atol=1e-5, rtol=1e-5)
    found = gradient(made, out.logps.sum())
    assert (found - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_nothing_but_empty_responses(path):
    made = policy("llama")
    flat = tokens(((2, (0, 0)), (3, (0,))))
    out = hf_token_stats(made.model, flat, path=path, stats=("final_hidden",))
    assert out.logps.shape == (0,)
    expected = stats_by_hand(plain("llama"), flat)["final_hidden"]
    torch.testing.assert_close(out.final_hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral_window"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_score_in_float32(name, dtype):
    made = policy(name, dtype=dtype)
    assert next(made.parameters()).dtype == dtype and made.path == "auto"
    for path in ("padded", "packed"):
        stats = hf_token_stats(
            made.model, tokens(), path=path, plain_head=made.plain_head, stats=("entropy",)
        )
        assert stats.logps.dtype == stats.entropy.dtype == torch.float32
        # the logits are the model's own, in half precision; what follows is not
        expected = by_hand(plain(name, dtype=dtype), tokens())
        assert (stats.logps - expected).abs().max() < 40 * torch.finfo(dtype).eps
        grad = gradient(made, stats.logps.sum())
        assert grad.dtype == dtype and torch.isfinite(grad).all()


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - PADDED_ONLY))
def test_bfloat16_packed_rows_round_no_more_than_the_plain_forward(name):
    """Errors of log-probs and of all gradients, to float32 with the same rounded weights."""
    exact, rounded = plain(name, dtype=torch.bfloat16).float(), plain(name, dtype=torch.bfloat16)
    made = policy(name, dtype=torch.bfloat16, path="packed")
    found = {"exact": [], "plain": [], "packed": []}
    for seed in (0, 1):
        flat = tokens(seed=seed)
        weights = torch.linspace(-1, 1, len(flat.response_ids))
        for key, model in (("exact", exact), ("plain", rounded), ("packed", made)):
            logps = made(flat).logps if model is made else by_hand(model, flat)
            gradients = gradient(model, (logps * weights).sum())
            found[key].append((logps.detach(), gradients.float()))
    right, plainly, packed = ([torch.cat(x) for x in zip(*v, strict=True)] for v in found.values())
    for what, limit, r, a, b in zip(
        ("logps", "gradient"), (2, 1.5), right, plainly, packed, strict=True
    ):
        assert (b - r).norm() <= limit * (a - r).norm(), what
        assert (b - r).norm() < 0.2 * r.norm(), what


def test_the_softmax_of_half_precision_logits_is_exact():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16() * 8
    targets = torch.arange(5)
    exact = logits.double().log_softmax(-1)
    logps, entropy, _ = logit_stats(logits, targets, entropy=True)
    wanted = exact.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logps.double(), wanted, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(
        entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_in_half_precision_and_under_autocast(dtype, autocast):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=draw).to(dtype) for n in (40, 50))
    hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=draw)
    results = []
    for budget in (10**9, 40 * 50 * 4, 50 * 4 * 4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, entropy, _ = head_stats(
                hidden, weight, None, targets, entropy=True, budget_bytes=budget
            )
        assert out.dtype == entropy.dtype == torch.float32
        loss = out.sin().sum() + entropy.sum()
        results.append((out, entropy, *torch.autograd.grad(loss, (hidden, weight))))
    half = autocast or dtype == torch.bfloat16
    for whole, *others in zip(*results, strict=True):
        for parts in others:
            assert whole.dtype == parts.dtype
            assert (whole - parts).norm() / whole.norm() < (0.01 if half else 1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_half_precision_weights_from_many_chunks(autocast):
    """Sums of gradients over 512 chunks, each rounded to 8 bits: later ones must not get lost."""
    draw = torch.Generator().manual_seed(0)
    # states that lean to one side: all chunks say the same
    hidden, weight = (torch.randn(n, 16, generator=draw) for n in (2048, 64))
    given = [(hidden + 1).bfloat16(), (weight * 0.3).bfloat16(), torch.zeros(64).bfloat16()]
    targets = torch.randint(0, 64, (2048,), generator=draw)

    def gradients(dtype, budget):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in given]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
            logps = head_stats(*leaves, targets, budget_bytes=budget)[0]
        return torch.autograd.grad(logps.mean(), leaves)

    exact = gradients(torch.float64, 10**9)
    found = gradients(torch.float32 if autocast else torch.bfloat16, 4 * CHUNKS * 64 * 4)
    for name, a, b in zip(("hidden", "weight", "bias"), exact, found, strict=True):
        assert (a - b).norm() / a.norm() < 0.01, name


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


def test_masks_by_hand():
    layout = pack(FlatTokens(torch.tensor([1, 2]), [2], torch.tensor([3, 4, 5]), [3], [0]))
    seen = layout.mask(2, 2, 0, torch.device("cpu"))
    assert seen.tolist() == [[True, True, True, False], [True, True, True, True]]
    near = layout.mask(2, 2, 2, torch.device("cpu"))  # itself and one before
    assert near.tolist() == [[False, True, True, False], [False, False, True, True]]
    assert layout.mask(0, 2, 1, torch.device("cpu")).tolist() == [[True, False], [False, True]]


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

"""One kernel for the whole packed row: what it is told, checked by a kernel written out here."""

import logging

import pytest
import torch
from test_forward import by_hand, gradient, plain, policy, tokens
from torch.nn.attention.flex_attention import flex_attention

from lit_pref.engine import attention, fused
from lit_pref.engine.forward import hf_token_stats

ROWS = {
    "short": [(3, [4, 1, 6]), (5, [2]), (1, [3, 7])],
    "many blocks": [(140, [200, 3]), (300, [129, 128, 0]), (1, [260])],
    "whole blocks": [(256, [128, 256]), (128, [])],
}


def seen_by_hand(segments, window):
    """[L, L] what each token sees: its prompt, its own response, nothing later or too far."""
    owner = []  # (prompt, response or -1, position) of each token
    for p, (prompt, responses) in enumerate(segments):
        owner += [(p, -1, i) for i in range(prompt)]
        for r, n in enumerate(responses):
            owner += [(p, r, prompt + i) for i in range(n)]
    prompt, response, at = torch.tensor(owner).T
    same = (prompt[:, None] == prompt) & ((response == -1) | (response[:, None] == response))
    distance = at[:, None] - at
    return same & (distance >= 0) & ((distance < window) if window else True)


def dense(row):
    """[L, L] what a block mask lets through: whole blocks unseen, others by its function."""
    length = row.seq_lengths[0]
    at = torch.arange(length)
    by_token = row.mask_mod(0, 0, at[:, None], at[None])

    def blocks(count, order):
        out = torch.zeros(order.shape[2:], dtype=torch.bool)
        for q, n in enumerate(count[0, 0].tolist()):
            out[q, order[0, 0, q, :n].long()] = True
        out = out.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return out[:length, :length]

    partial = blocks(row.kv_num_blocks, row.kv_indices)
    whole = blocks(row.full_kv_num_blocks, row.full_kv_indices)
    assert not (partial & whole).any()
    return whole | (partial & by_token)


def kernel_by_hand(query, key, value, *, score_mod, block_mask, scale, enable_gqa,
                   kernel_options, return_aux=None):  # fmt: skip
    assert enable_gqa == (query.shape[1] != key.shape[1])
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        scores = score_mod(scores, None, None, None, None)
    scores = scores.masked_fill(~dense(block_mask), float("-inf"))
    out = scores.softmax(-1) @ value
    if return_aux is None:
        return out
    return out, type("Aux", (), {"lse": scores.logsumexp(-1)})


@pytest.fixture
def kernel(monkeypatch):
    """Lets the CPU have a kernel; the calls it gets are counted."""
    calls = []

    def use(function):
        def counted(*args, **kwargs):
            calls.append(args[0].shape[2])
            return function(*args, **kwargs)

        monkeypatch.setattr(fused, "DEVICES", {"cpu"})
        monkeypatch.setattr(fused, "_tried", {})
        monkeypatch.setattr(fused, "_kernel", lambda: counted)
        return calls

    return use


@pytest.mark.parametrize("window", [0, 1, 5, 150, 1000])
@pytest.mark.parametrize("name", ROWS)
def test_the_mask_shows_what_a_token_may_see(name, window):
    row = fused.fused_row(ROWS[name], window, torch.device("cpu"))
    assert torch.equal(dense(row), seen_by_hand(ROWS[name], window))


def test_blocks_are_skipped_and_whole_ones_need_no_mask():
    row = fused.fused_row(ROWS["whole blocks"], 0, torch.device("cpu"))
    # prompt of two blocks, a response of one and of two, a prompt of one
    assert row.kv_num_blocks[0, 0].tolist() == [1] * 6  # on the diagonal
    assert row.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 2, 3, 0]
    assert row.full_kv_indices[0, 0, 4, :3].tolist() == [0, 1, 3]  # not the other response


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "mistral_window", "gpt2", "gpt_neox", "gemma2", "gemma3", "gpt_oss"]
)
def test_one_kernel_gives_the_plain_forward_and_its_gradients(name, kernel):
    calls = kernel(kernel_by_hand)
    made = policy(name)
    assert made.path != "padded"
    flat = tokens()
    weights = torch.linspace(-1, 1, len(flat.response_ids))
    model = plain(name)
    expected = by_hand(model, flat)
    wanted = gradient(model, (expected * weights).sum())
    hf_token_stats(made.model, flat, path="packed", plain_head=made.plain_head)  # tries it
    before = len(calls)
    found = hf_token_stats(made.model, flat, path="packed", plain_head=made.plain_head).logps
    assert len(calls) == before + 2  # once in each layer
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = gradient(made, (found * weights).sum())
    assert (grad - wanted).norm() / wanted.norm() < 1e-5


def test_a_kind_of_layer_is_tried_once(kernel):
    calls = kernel(kernel_by_hand)
    made = policy("gemma3")  # with a window in one layer, without in the other
    state = torch.get_rng_state()
    hf_token_stats(made.model, tokens(), path="packed")
    hf_token_stats(made.model, tokens(seed=1), path="packed")
    short, long = (sum(p + sum(r) for p, r in row) for row in fused.TRIALS)
    assert calls.count(short) == calls.count(long) == 2
    assert all(fused._tried.values()) and len(fused._tried) == 2
    assert torch.equal(torch.get_rng_state(), state)


def wrong_values(query, key, value, **options):
    return kernel_by_hand(query, key, value, **options) * 1.001


def wrong_gradient(query, key, value, **options):
    return kernel_by_hand(query, key.detach() + 0 * key, value, **options)


def no_compiler(*args, **options):
    raise RuntimeError("no working compiler\nand much more")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (wrong_values, "values differ by 0.001, more than"),
        (wrong_gradient, "of keys differ by 1, more than"),
        (no_compiler, "RuntimeError: no working compiler)"),
    ],
)
def test_what_a_kernel_gets_wrong_it_does_not_do(function, said, kernel, caplog):
    calls = kernel(function)
    with caplog.at_level(logging.INFO, "lit_pref"):
        made = policy("llama")
        flat = tokens()
        found = hf_token_stats(made.model, flat, path="packed").logps
    expected = by_hand(plain("llama"), flat)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert made.path != "padded" and len(calls) <= 2  # the trial alone
    lines = [r.getMessage() for r in caplog.records if "packed rows" in r.getMessage()]
    assert len(lines) == 2 and "compiling" in lines[0]
    assert said in lines[1] and "\n" not in lines[1]


def test_few_calls_need_no_kernel(kernel):
    calls = kernel(kernel_by_hand)
    made = policy("llama")
    few = [(3, (4, 1)), (5, (2, 2, 6))]  # seven calls
    hf_token_stats(made.model, tokens(few), path="packed")
    assert not calls
    hf_token_stats(made.model, tokens([*few, (4, ())]), path="packed")
    assert calls


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_kernel_itself_takes_what_it_is_given(kernel):
    """torch's own, not compiled: the CPU has its forward only."""
    kernel(flex_attention)
    draw = torch.Generator().manual_seed(0)
    for window, softcap, keys in [(0, None, 2), (40, None, 6), (0, 0.7, 2)]:
        segments = ROWS["many blocks"]
        length = sum(p + sum(r) for p, r in segments)
        query, key, value = (torch.randn(1, n, length, 16, generator=draw) for n in (6, keys, keys))
        row = fused.fused_row(segments, window, query.device)
        options = {"scaling": 0.3, "softcap": softcap, "sinks": None}
        with torch.no_grad():
            found = fused.fused_attention(query, key, value, row, **options)
        layout = attention.PackedLayout(torch.empty(0), torch.empty(0), segments, torch.empty(0))
        right = attention._one_by_one(query, key, value, layout, window, 0.3, softcap, None)
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "mistral_window", "gpt2", "gpt_neox", "gemma2", "gemma3", "gpt_oss"]
)
def test_on_a_gpu(name, dtype, caplog):
    with caplog.at_level(logging.INFO, "lit_pref"):
        made = policy(name).to("cuda", dtype)
        flat = tokens().to("cuda")
        weights = torch.linspace(-1, 1, len(flat.response_ids), device="cuda")
        found = hf_token_stats(made.model, flat, path="packed", plain_head=made.plain_head).logps
    assert "compiling" in caplog.text and "one for all" not in caplog.text
    model = plain(name).to("cuda")
    expected = by_hand(model, flat)
    near = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, atol=near, rtol=near)
    wanted = gradient(model, (expected * weights).sum())
    grad = gradient(made, (found * weights).sum()).float()
    assert (grad - wanted).norm() / wanted.norm() < near

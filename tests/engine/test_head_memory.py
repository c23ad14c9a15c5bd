"""The head never makes a tensor of tokens x vocabulary, whatever the model does to its logits."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pref.engine import forward as forward_module
from lit_pref.engine.head import (
    CHUNKS,
    SUMMED,
    HeadForm,
    declared_form,
    head_bytes,
    head_stats,
)
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.models import random_model
from lit_pref.types import FlatTokens

FORMS = {
    "plain": HeadForm(),
    "scaled": HeadForm(scale=0.25),
    "capped": HeadForm(cap=3.0),
    "both": HeadForm(scale=2.0, cap=3.0),
}


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = {_place(t) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        made = [t for t in tree_leaves(out) if torch.is_tensor(t) and _place(t) not in there]
        self.elements = max([self.elements, *(t.numel() for t in made)])
        return out


def _place(tensor):
    return tensor.untyped_storage().data_ptr()


def written_out(hidden, weight, targets, form):
    logits = hidden @ weight.T * form.scale
    if form.cap is not None:
        logits = form.cap * torch.tanh(logits / form.cap)
    logps = logits.log_softmax(-1)
    probs = logps.exp()
    chosen = logps.gather(-1, targets[:, None])[:, 0]
    return chosen, -(probs * logps).sum(-1), probs.square().sum(-1)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("budget", [10**9, 13 * 31 * 4, 31 * 4 * 9], ids=["plain", "kept", "again"])
def test_scaled_and_capped_heads_are_the_formula_written_out(name, budget):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(s, generator=draw, dtype=torch.float64, requires_grad=True)
        for s in ((13, 8), (31, 8))
    )
    targets = torch.randint(0, 31, (13,), generator=draw)
    form = FORMS[name]
    wanted = written_out(hidden, weight, targets, form)
    found = head_stats(
        hidden, weight, None, targets, entropy=True, sum_squares=True, form=form,
        budget_bytes=budget,
    )  # fmt: skip
    grads = [
        torch.autograd.grad(
            sum((x.sin() * (i + 1)).sum() for i, x in enumerate(out)), (hidden, weight)
        )
        for out in (wanted, found)
    ]
    for a, b in zip((*wanted, *grads[0]), (*found, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def test_forms_of_configs():
    assert declared_form(tf.LlamaConfig()) == HeadForm()
    assert declared_form(tf.CohereConfig(logit_scale=0.0625)) == HeadForm(scale=0.0625)
    assert declared_form(tf.GraniteConfig(logits_scaling=8.0)) == HeadForm(scale=0.125)
    assert declared_form(tf.Gemma2Config()) == HeadForm(cap=30.0)
    assert declared_form(tf.Gemma3TextConfig()) == HeadForm()


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 262144,
         "intermediate_size": 16, "num_key_value_heads": 1}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8),
    "cohere": lambda: tf.CohereConfig(**SMALL),
    "granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=8.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_tensor_of_tokens_by_vocabulary_is_made(name, monkeypatch):
    """24 tokens with a budget of four: logits come one token at a time, and again in backward."""
    small = partial(head_stats, budget_bytes=8 * 262144 * 4)
    monkeypatch.setattr(forward_module, "head_stats", small)
    policy = HFPolicy(random_model(name, CONFIGS[name](), seed=0)).load().train()
    ids = torch.arange(24)
    flat = FlatTokens(ids[:4], [4], ids, [24], [0])
    for stats in ((), ("entropy", "sum_squares")):
        with Largest() as seen:
            out = policy(flat, stats=stats)
            (out.logps.sum() + (0 if out.entropy is None else out.entropy.sum())).backward()
        assert seen.elements == SMALL["vocab_size"] * SMALL["hidden_size"]  # the weights' gradient
        with Largest() as seen, torch.no_grad():
            policy(flat, stats=stats)
        assert seen.elements == SMALL["vocab_size"]  # one token's logits


def test_kept_logits_are_made_once_in_one_piece():
    hidden, weight = torch.randn(12, 4), torch.randn(7, 4, requires_grad=True)
    budget = 12 * 7 * 4
    with Largest() as seen:
        head_stats(hidden, weight, None, torch.zeros(12).long(), budget_bytes=budget)
    assert seen.elements == 12 * 7
    with Largest() as seen, torch.no_grad():  # not where no backward follows
        head_stats(hidden, weight, None, torch.zeros(12).long(), budget_bytes=budget)
    assert seen.elements <= 28


def test_what_the_plan_says_of_the_head():
    vocabulary = 262144
    assert head_bytes(2048, vocabulary) == 3 * 64 * 2**20  # chunks of 64 tokens
    assert head_bytes(400, vocabulary) == 400 * 2**20 + 3 * 64 * 2**20  # 400 MiB are kept
    assert head_bytes(400, vocabulary, grad=False) == 3 * 64 * 2**20
    assert head_bytes(10, 1000) == 4 * 10 * 1000 * 4


class Shaped(TorchDispatchMode):
    """How many tensors of a shape operations made."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = {_place(t) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        self.count += sum(
            t.shape == self.shape and _place(t) not in there
            for t in tree_leaves(out)
            if torch.is_tensor(t)
        )
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunks", [CHUNKS * 2, CHUNKS * 2 + 1])
def test_the_plan_has_the_copy_that_sums_of_many_chunks_are_made_in(dtype, chunks):
    weight = torch.randn(48, 8).to(dtype).requires_grad_()
    tokens, budget = 2 * chunks, 2 * CHUNKS * 48 * 4  # two tokens a chunk
    hidden, targets = torch.randn(tokens, 8).to(dtype), torch.zeros(tokens).long()
    logps, _, _ = head_stats(hidden, weight, None, targets, budget_bytes=budget)
    with Shaped(weight.shape) as seen:
        torch.autograd.grad(logps.sum(), weight)
    size = weight.numel() * 2 if dtype == torch.bfloat16 else 0
    extra = head_bytes(tokens, 48, half_table=size, budget_bytes=budget) - head_bytes(
        tokens, 48, budget_bytes=budget
    )
    assert extra == (seen.count - 1) * weight.numel() * weight.element_size()
    assert (extra > 0) == (dtype == torch.bfloat16 and chunks > SUMMED)
    assert head_bytes(tokens, 48, grad=False, half_table=size, budget_bytes=budget) == head_bytes(
        tokens, 48, grad=False, budget_bytes=budget
    )


SCRIPT = """
import sys, torch
from lit_pref.engine.allocator import keep_freed_memory
from lit_pref.engine import forward as forward_module
from lit_pref.engine.head import HeadForm, head_stats

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))

if sys.argv[1] == "keep":
    keep_freed_memory()
tokens, hidden, vocabulary = int(sys.argv[3]), 640, 262144
weight = torch.zeros(vocabulary, hidden).normal_(0, 0.02).requires_grad_()
states = torch.zeros(tokens, hidden).normal_().requires_grad_()
targets = torch.randint(0, vocabulary, (tokens,))
moments = [torch.zeros_like(weight).add_(1.0) for _ in range(2)]  # of the optimizer
before = peak()
form = HeadForm(cap=30.0) if sys.argv[2] == "capped" else HeadForm()
logps, _, _ = head_stats(states, weight, None, targets, form=form)
logps.sum().backward()
assert bool(torch.isfinite(weight.grad[0, 0]))
print(peak() - before)
"""


def growth(*words):
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words)], capture_output=True, text=True, check=True
    )
    return int(out.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("form", ["plain", "capped"])
@pytest.mark.parametrize("allocator", ["keep", "default"])
def test_gemma_3_270m_shapes_stay_under_1200_mb_above_weights_and_optimizer(allocator, form):
    """2,048 response tokens, vocabulary 262,144: full logits alone would be 2.1 GB, twice."""
    assert growth(allocator, form, 2048) < 1.2e9

"""A frozen reference reads its weights from the model's file: equal, light, and guarded."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_pref.objectives.forward import NO_GRADIENT_TOKENS, EngineForward
from lit_pref.policies import FrozenReference, HFPolicy, MovingReference
from lit_pref.policies.mapped import MappedWeights, header_of
from lit_pref.policies.models import random_model
from lit_pref.policies.tokenizer import byte_tokenizer
from lit_pref.types import FlatTokens, TokenStats


def small(vocab_size: int, hidden: int = 32, *, tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=258, pad_token_id=257,
    )  # fmt: skip


def folder_of(path: Path, *, tied: bool = True) -> Path:
    tokenizer = byte_tokenizer(context_length=128)
    torch.manual_seed(0)
    LlamaForCausalLM(small(len(tokenizer), tied=tied)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tokens() -> FlatTokens:
    return FlatTokens(
        prompt_ids=torch.arange(5),
        prompt_lengths=[5],
        response_ids=torch.arange(10, 17),
        lengths=[3, 4],
        prompt_of=[0, 0],
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_has_the_weights_of_the_file_and_stays_when_the_policy_moves(tmp_path, tied):
    from lit_pref.policies import hf

    policy = HFPolicy(hf(folder_of(tmp_path / "m", tied=tied))).load()
    before = policy.token_logps(tokens()).logps.detach().clone()
    reference = FrozenReference()
    reference.prepare(policy)
    twin = reference.copy
    mine = {id(p) for p in policy.parameters()}
    assert twin.mapped is not None and not any(id(p) in mine for p in twin.parameters())
    held = twin.mapped.replacements(policy.model)
    assert len(held) == len(list(policy.parameters()))  # every weight comes from the file
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.5)
    assert torch.equal(reference.token_logps(tokens()).logps, before)
    reference.rest()  # the pages go, the values come back
    assert torch.equal(reference.token_logps(tokens()).logps, before)
    assert not any(p.requires_grad for p in twin.parameters())
    assert not twin.mapped.replacements(policy.model)  # the policy is no longer as in the file


def test_a_file_that_was_changed_is_noticed(tmp_path):
    from lit_pref.policies import hf

    policy = HFPolicy(hf(folder_of(tmp_path / "m"))).load()
    reference = FrozenReference()
    reference.prepare(policy)
    os.utime(tmp_path / "m" / "model.safetensors", ns=(0, 0))
    with pytest.raises(RuntimeError, match="was changed during the run"):
        reference.token_logps(tokens())


def test_weights_on_a_device_need_their_file_no_more(tmp_path):
    from lit_pref.policies import hf

    policy = HFPolicy(hf(folder_of(tmp_path))).load()
    reference = FrozenReference()
    reference.prepare(policy)
    reference.to(torch.device("cpu"))
    assert reference.copy.mapped is not None
    reference.to(torch.device("meta"))
    assert reference.copy.mapped is None


def test_other_weights_and_files_are_copied_as_before(tmp_path):
    policy = HFPolicy(random_model("small", small(300), seed=0)).load()
    reference = FrozenReference()
    reference.prepare(policy)
    assert not reference.copy.mapped.replacements(policy.model)  # it has no file
    (tmp_path / "broken.safetensors").write_bytes(b"\x05")
    (tmp_path / "other.bin").write_bytes(b"weights")
    files = [tmp_path / "broken.safetensors", tmp_path / "other.bin", tmp_path / "missing"]
    assert not MappedWeights(files).replacements(policy.model)
    moving = MovingReference()
    moving.prepare(policy)
    assert moving.copy.mapped is None  # it is written to


def test_the_header_names_shapes(tmp_path):
    header, start = header_of(folder_of(tmp_path / "m") / "model.safetensors")
    assert header["model.norm.weight"]["shape"] == [32] and start > 8


def test_passes_without_gradient_are_cut_even_where_no_budget_is_given():
    seen, rested = [], []

    class Model:
        def token_logps(self, part, *, stats=()):
            seen.append(part.num_tokens)
            return TokenStats(logps=torch.zeros(sum(part.lengths)))

        def rest(self):
            rested.append(len(seen))

    count = 3 * NO_GRADIENT_TOKENS // 100
    flat = FlatTokens(
        prompt_ids=torch.zeros(50 * count, dtype=torch.long),
        prompt_lengths=[50] * count,
        response_ids=torch.zeros(50 * count, dtype=torch.long),
        lengths=[50] * count,
        prompt_of=list(range(count)),
    )
    import contextlib

    out = EngineForward({"m": Model()}, None, torch.device("cpu"), contextlib.nullcontext)(
        "m", flat
    )
    assert out.logps.shape == (50 * count,) and sum(seen) == 100 * count
    assert len(seen) > 2 and max(seen) <= NO_GRADIENT_TOKENS and rested == [len(seen)]


SCRIPT = """
import sys, torch
from lit_pref.policies import FrozenReference, HFPolicy, hf
from lit_pref.types import FlatTokens

def held():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon", "RssFile"))) / 1024

policy = HFPolicy(hf(sys.argv[1])).load()
with torch.no_grad():
    for p in policy.parameters():
        p.mul_(1.0)  # the policy's own pages are in memory now
before = held()
reference = FrozenReference()
reference.prepare(policy)
ids = torch.arange(8)
t = FlatTokens(prompt_ids=ids, prompt_lengths=[8], response_ids=ids, lengths=[8], prompt_of=[0])
reference.token_logps(t)
used = held() - before
reference.rest()
print(used, held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_resting_reference_holds_no_memory(tmp_path):
    tokenizer = byte_tokenizer(context_length=128)
    torch.manual_seed(0)
    model = LlamaForCausalLM(small(len(tokenizer), hidden=1024))
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "m")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    used, resting = map(float, out.stdout.split())
    assert size > 40 and used > 0.9 * size  # while it works its pages are there
    assert resting < 0.5 * size

"""Quantized weights need bitsandbytes and adapters."""

import dataclasses
from importlib.util import find_spec

import pytest
import torch
import transformers

from lit_pref.policies import FrozenReference, HFPolicy, LoRA, hf, pretrained, tiny
from lit_pref.types import FlatTokens, Refusal

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    spec = tiny()
    config = spec.load().config
    config.intermediate_size = 192  # bitsandbytes on a CPU wants multiples of 32
    spec.load = lambda: transformers.AutoModelForCausalLM.from_config(config)
    HFPolicy(spec).load().save_pretrained(str(out))
    return out


def some_tokens():
    ids = torch.arange(1, 60)
    return FlatTokens(ids[:20], [20], ids[20:], [20, 19], [0, 0])


@torch.enable_grad()
def gradient(made):
    made.zero_grad(set_to_none=True)
    made(some_tokens()).logps.sum().backward()
    return torch.cat([p.grad.flatten() for p in made.parameters() if p.requires_grad])


def test_without_the_package_the_install_command_is_named(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"bitsandbytes and accelerate.*\[peft,qlora\]"):
        hf(folder, quantize="4bit")


def test_other_widths_are_refused(folder):
    with pytest.raises(Refusal, match="4bit, 8bit or null"):
        hf(folder, quantize="3bit")


@pytest.mark.parametrize(
    ("lora", "words"), [(None, "lora.rank=16"), ({"rank": 2}, "export=adapter")]
)
def test_quantized_weights_need_adapters_that_are_exported_alone(lora, words):
    spec = dataclasses.replace(tiny(), quantized=True)
    with pytest.raises(Refusal, match=words):
        HFPolicy(spec, lora=lora and LoRA(**lora))


@pytest.mark.filterwarnings("error:.*autograd kernel")
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_train_on_quantized_weights(folder, bits, tmp_path):
    made = HFPolicy(hf(folder, quantize=bits), lora=LoRA(rank=4, export="adapter")).load().train()
    exact = HFPolicy(hf(folder)).load()(some_tokens()).logps
    found = made(some_tokens()).logps
    assert 0 < (found - exact).abs().max() < 0.5
    reference = FrozenReference()
    reference.prepare(made)
    with torch.no_grad():  # sampling, in eval mode, must leave the gradient what it was
        before = gradient(made)
        made.eval().prefill([[1, 2, 3]], 2)
        made.train()
    torch.testing.assert_close(gradient(made), before)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (-made(some_tokens()).logps.mean()).backward()
        optimizer.step()
    assert made(some_tokens()).logps.mean() > found.mean() + 0.01
    kept = reference.token_logps(some_tokens()).logps
    torch.testing.assert_close(kept, found.detach(), atol=0.01, rtol=0)  # 8bit rounds in training
    assert all("lora_" in name for name in made.state_dict())
    made.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").exists()

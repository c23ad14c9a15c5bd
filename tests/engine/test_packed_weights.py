"""Packed weights compute what the plain layers do, and leave no trace."""

import sys

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.pytorch_utils import Conv1D

import lit_pref as lp
from lit_pref.engine.packed_weights import packed_bytes, packed_weights
from lit_pref.policies.models import random_model
from lit_pref.types import Prompt

module = sys.modules[packed_weights.__module__]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 320), Conv1D(256, 320)
        self.small, self.nobias = nn.Linear(256, 8), nn.Linear(256, 512, bias=False)

    def forward(self, x):
        h = self.second(torch.tanh(self.first(x)))
        return self.small(h), self.nobias(h)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    made = Net()
    nn.init.normal_(made.second.bias)
    return made.to(dtype)


needs = pytest.mark.skipif(
    not module._works(torch.float32), reason="this torch has no packed products"
)


def test_the_operators_of_the_pinned_torch_are_there():
    """Fails when torch changes them; then ``packed_weights`` does nothing until it is mended."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    assert module._works(torch.float32)
    assert not module._works(torch.float64)


@needs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 40)])
def test_equal_to_plain_layers(dtype, shape):
    if not module._works(dtype):
        pytest.skip("no packed products in this precision on this processor")
    model, x = net(dtype), torch.randn(*shape, 256).to(dtype)
    with torch.no_grad():
        plain = model(x)
        with packed_weights(model, tokens=64):
            packed = model(x)
    for a, b in zip(packed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=16 * torch.finfo(dtype).eps, atol=2e-5)


@needs
def test_which_layers_are_packed_and_restored():
    model = net()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    with packed_weights(model, tokens=64):
        changed = {name for name, m in model.named_modules() if "forward" in vars(m)}
        assert changed == {"first", "second", "nobias"}
        with packed_weights(model, tokens=64):  # nothing is packed twice
            pass
        assert {name for name, m in model.named_modules() if "forward" in vars(m)} == changed
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == before
    assert packed_bytes(model) == 4 * (256 * 320 + 320 * 256 + 256 * 512)


@needs
def test_restored_after_an_error():
    model = net()
    with pytest.raises(KeyError), packed_weights(model, tokens=64):
        raise KeyError
    assert not any("forward" in vars(m) for m in model.modules())


@needs
def test_gradients_and_autocast_take_the_plain_way():
    model, x = net(), torch.randn(2, 256)
    wanted = torch.autograd.grad(model(x)[1].sum(), model.first.weight)[0]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)[1]
    with packed_weights(model, tokens=64):
        got = torch.autograd.grad(model(x)[1].sum(), model.first.weight)[0]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(x)[1], half)
    assert torch.equal(got, wanted)


def test_nothing_for_few_steps_or_other_objects(monkeypatch):
    model = net()
    with packed_weights(model, tokens=2), packed_weights(object(), tokens=64):
        assert not any("forward" in vars(m) for m in model.modules())
    monkeypatch.setattr(module, "_works", lambda dtype: False)
    with packed_weights(model, tokens=64):
        assert not any("forward" in vars(m) for m in model.modules())


@needs
def test_subclasses_are_left_alone():
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(Other(256, 256))
    with packed_weights(model, tokens=64):
        assert "forward" not in vars(model[0])
    assert packed_bytes(model) == 0


def wide_policy():
    config = LlamaConfig(
        vocab_size=259, hidden_size=256, intermediate_size=320, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=258, pad_token_id=257,
    )  # fmt: skip
    return lp.HFPolicy(random_model("wide", config, seed=0)).load().eval()


@needs
@pytest.mark.parametrize("precision", ["policy", "bfloat16"])
def test_sampling_uses_them_and_sees_new_weights(precision):
    """A round after an update samples from the new weights; packed copies do not outlive a call."""
    if not module._works(torch.bfloat16):
        pytest.skip("no packed products in bfloat16 on this processor")
    policy = wide_policy()
    sampler = lp.NativeSampler(max_new_tokens=12, precision=precision)
    sampled = policy if precision == "policy" else policy.in_precision(torch.bfloat16)
    linear = [m for m in sampled.modules() if type(m) is nn.Linear]
    assert len(linear) == 15 and all(m.weight.numel() >= 2**16 for m in linear)
    calls = []
    for m in linear:
        m.register_forward_hook(lambda m, i, o: calls.append("forward" in vars(m)))

    def draw():
        prompts = [Prompt(id=0, text="a", ids=[5, 6, 7])]
        drawn = sampler.sample(policy, prompts, key=(0,), occurrences=[0], responses=4)
        return [r.ids for r in drawn[0].responses]

    first = draw()
    assert len(calls) >= 12 * 15 and all(calls)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    second = draw()
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    assert first != second and draw() == first


@needs
def test_same_samples_with_and_without(monkeypatch):
    """Rounding apart, and with log-probs of the same distribution."""
    policy, sampler = wide_policy(), lp.NativeSampler(max_new_tokens=24)
    prompts = [Prompt(id=n, text="a", ids=[5, 6, 7 + n]) for n in range(3)]

    def draw():
        drawn = sampler.sample(policy, prompts, key=(0,), occurrences=[0] * 3, responses=4)
        return [r for group in drawn for r in group.responses]

    packed = draw()
    monkeypatch.setattr(module, "_works", lambda dtype: False)
    plain = draw()
    assert [r.ids for r in packed] == [r.ids for r in plain]
    for a, b in zip(packed, plain, strict=True):
        assert a.policy_logps == pytest.approx(b.policy_logps, abs=1e-5)

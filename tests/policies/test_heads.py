import math

import pytest
import torch

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.heads import ScalarHead, freeze_output_layer
from lit_pref.policies.models import gpt_nano
from lit_pref.types import Refusal


def test_zero_head_gives_exact_zeros():
    head = ScalarHead(8)
    assert head(torch.randn(3, 8)).tolist() == [0.0] * 3
    assert head.bias is None


def test_normal_head_has_the_documented_spread_and_is_seeded():
    head = ScalarHead(4095, init="normal", bias=True)
    # 4095 draws: the relative error of a standard deviation is about 1 / sqrt(2 n) = 1.1 %
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert head.bias.item() == 0.0
    same, other = ScalarHead(4095, init="normal"), ScalarHead(4095, init="normal", seed=1)
    assert torch.equal(head.weight, same.weight)
    assert not torch.equal(head.weight, other.weight)


def test_prepare_makes_weights_once():
    head = ScalarHead(init="normal")
    assert list(head.parameters()) == []
    head.prepare(4)
    weight = head.weight
    assert head.prepare(8).weight is weight
    assert [n for n, _ in head.named_parameters()] == ["weight"]


def test_numbers_by_hand():
    head = ScalarHead(2, bias=True)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([2.0, -1.0]))
        head.bias.fill_(0.5)
    hidden = torch.tensor([[[1.0, 3.0]], [[0.0, 1.0]]])
    assert head(hidden).tolist() == [[-0.5], [-0.5]]


def test_half_precision_states_are_read_in_float32():
    head = ScalarHead(64, init="normal")
    hidden = torch.randn(5, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(hidden)
    assert out.dtype == torch.float32
    assert torch.equal(out, head(hidden.float()))


def test_unknown_initialisation_is_refused():
    with pytest.raises(Refusal, match="zero or normal"):
        ScalarHead(4, init="uniform")


def test_an_output_layer_of_its_own_is_frozen_and_a_shared_one_is_not():
    policy = HFPolicy(gpt_nano()).load()
    assert policy.hidden_size == 48
    freeze_output_layer(policy)
    frozen = [n for n, p in policy.named_parameters() if not p.requires_grad]
    assert frozen == ["model.lm_head.weight"]
    shared = HFPolicy(gpt_nano()).load()
    shared.model.set_output_embeddings(torch.nn.Linear(48, 100, bias=False))
    shared.model.get_output_embeddings().weight = shared.model.get_input_embeddings().weight
    freeze_output_layer(shared)
    assert all(p.requires_grad for p in shared.parameters())
    assert math.isfinite(shared.model.get_output_embeddings().weight.sum().item())


def test_weights_are_made_on_the_host_whatever_the_default_device():
    """Lightning makes a GPU the default while models are configured, where no draw would work."""
    with torch.device("meta"):
        head = ScalarHead(8, init="normal", bias=True)
    assert torch.equal(head.weight, ScalarHead(8, init="normal").weight)
    assert head.bias.device.type == "cpu"

import math

import pytest
import torch

from lit_pref.functional.unpaired import bco_unpaired_loss, class_shift
from lit_pref.objectives import BCOUnpaired
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, response_sums, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def softplus(x):
    return math.log1p(math.exp(x))


class TestBCOUnpaired(ObjectiveTester):
    objective = BCOUnpaired
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            now = response_sums(module.policy(batch.tokens).logps, batch.tokens)
        ref = response_sums(batch.notes.token["ref_logps"].double(), batch.tokens)
        up, down = [], []
        for n, group in enumerate(round.groups):
            mean = sum(r.reward for r in group.responses) / 4
            for k, r in enumerate(group.responses):
                reward = 0.5 * (now[4 * n + k] - ref[4 * n + k])
                (up if r.reward > mean else down).append(reward)
        assert len(up) != len(down)
        shift = (sum(up) / len(up) + sum(down) / len(down)) / 2
        expected = sum(softplus(shift - r) for r in up) / len(up)
        expected += sum(softplus(r - shift) for r in down) / len(down)
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)

    def test_a_class_that_is_missing_adds_nothing(self):
        groups = self.groups()
        for group in groups:
            for r in group.responses:
                r.label = True
        assert self.gradient_of(groups).abs().max() > 0


def test_numbers_by_hand():
    # rewards 1, 3 | -2: shift (2 - 2) / 2 = 0: softplus(-1), softplus(-3), softplus(-2).
    rewards = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64, requires_grad=True)
    desirable = torch.tensor([True, True, False])
    shift = class_shift(rewards, desirable)
    assert shift.item() == 0.0
    assert not shift.requires_grad
    losses = bco_unpaired_loss(rewards, desirable, shift=shift)
    assert losses.tolist() == pytest.approx([0.3132617, 0.0485874, 0.1269280], abs=1e-6)
    (grad,) = torch.autograd.grad(losses.sum(), rewards)
    expected = [-1 / (1 + math.e), -1 / (1 + math.e**3), 1 / (1 + math.e**2)]
    assert grad.tolist() == pytest.approx(expected)


def test_the_shift_of_nothing_is_zero():
    assert class_shift(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).item() == 0.0
    assert class_shift(torch.ones(2), torch.tensor([True, True])).item() == 1.0


def test_refusals():
    with pytest.raises(Refusal, match=r"objective\.beta"):
        BCOUnpaired(TinyPolicy(), reference=FrozenReference(), beta=0.0)
    with pytest.raises(Refusal, match="needs a reference"):
        BCOUnpaired(TinyPolicy())

import math

import pytest
import torch

from lit_pref.functional.preference_reference import dpop_loss
from lit_pref.objectives import DPOP
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestDPOP(ObjectiveTester):
    objective = DPOP
    options = {"beta": 0.3, "penalty": 5.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(-math.log(sigmoid(0.3 * (p.h_w - p.h_l - 5 * max(0.0, -p.h_w)))) for p in numbers)
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # h_w = 1, h_l = -1: no penalty, -log sigmoid(0.5 * 2) = softplus(-1) = 0.3132617.
    # h_w = -1, h_l = -3: 0.5 * (2 - 2 * 1) = 0, log 2.
    chosen = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -3.0], dtype=torch.float64)
    losses = dpop_loss(chosen, rejected, beta=0.5, penalty=2.0)
    assert losses.tolist() == pytest.approx([0.3132617, math.log(2)], abs=1e-6)
    # Below the reference the slope is (1 + penalty) times as steep: -0.5 * beta * 3.
    (grad,) = torch.autograd.grad(losses.sum(), chosen)
    assert grad[1].item() == pytest.approx(-0.75)
    assert grad[0].item() == pytest.approx(-0.5 * sigmoid(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"penalty": -1.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        DPOP(TinyPolicy(), reference=FrozenReference(), **options)

import math

import pytest
import torch

from lit_pref.functional.preference_reference import apo_down_loss
from lit_pref.objectives import APODown
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestAPODown(ObjectiveTester):
    objective = APODown
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(sigmoid(0.5 * p.h_w) + 1 - sigmoid(0.5 * (p.h_w - p.h_l)) for p in numbers) / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # At 0: 1/2 + 1/2. At rewards (-log 3, -2 log 3): 1/4 + 1 - 3/4.
    chosen = torch.tensor([0.0, -2 * math.log(3)], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, -4 * math.log(3)], dtype=torch.float64, requires_grad=True)
    losses = apo_down_loss(chosen, rejected, beta=0.5)
    assert losses.tolist() == pytest.approx([1.0, 0.5])
    # At 0 the two terms of the chosen slope cancel; the rejected response goes down.
    up, down = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert (up[0].item(), down[0].item()) == pytest.approx((0.0, 0.125))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        APODown(TinyPolicy(), reference=FrozenReference(), **options)

import math

import pytest
import torch

from lit_pref.functional.preference_reference import apo_zero_loss
from lit_pref.objectives import APOZero
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestAPOZero(ObjectiveTester):
    objective = APOZero
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = sum(1 - sigmoid(0.5 * p.h_w) + sigmoid(0.5 * p.h_l) for p in numbers) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # At 0: 1 - 1/2 + 1/2. At rewards (log 3, -log 3): 1 - 3/4 + 1/4.
    chosen = torch.tensor([0.0, 2 * math.log(3)], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, -2 * math.log(3)], dtype=torch.float64, requires_grad=True)
    losses = apo_zero_loss(chosen, rejected, beta=0.5)
    assert losses.tolist() == pytest.approx([1.0, 0.5])
    # Slopes: -+ beta s (1 - s), with s = 1/2 and 3/4.
    up, down = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert up.tolist() == pytest.approx([-0.125, -0.5 * 3 / 16])
    assert down.tolist() == pytest.approx([0.125, 0.5 * 3 / 16])


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        APOZero(TinyPolicy(), reference=FrozenReference(), **options)

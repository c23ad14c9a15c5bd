import math

import pytest
import torch

from lit_pref.functional.preference_reference import bco_loss, bco_shift
from lit_pref.objectives import BCO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestBCO(ObjectiveTester):
    objective = BCO
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        shift = 0.5 * sum(p.h_w + p.h_l for p in numbers) / (2 * 8)
        expected = (
            sum(
                -math.log(sigmoid(0.5 * p.h_w - shift)) - math.log(sigmoid(shift - 0.5 * p.h_l))
                for p in numbers
            )
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # beta = 1: rewards (1, 3) and (-2, 0): shift (2 - 1) / 2 = 1/2.
    # First pair: softplus(-(1 - .5)) + softplus(-2 - .5) = 0.4740770 + 0.0788898.
    chosen = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-2.0, 0.0], dtype=torch.float64)
    shift = bco_shift(chosen, rejected, beta=1.0)
    assert shift.item() == 0.5
    assert not shift.requires_grad
    losses = bco_loss(chosen, rejected, beta=1.0, shift=shift)
    # Second pair: softplus(-2.5) + softplus(-.5) = 0.0788898 + 0.4740770.
    assert losses.tolist() == pytest.approx([0.5529668, 0.5529668], abs=1e-6)
    (grad,) = torch.autograd.grad(losses.sum(), chosen)
    assert grad.tolist() == pytest.approx([-sigmoid(-0.5), -sigmoid(-2.5)])


def test_the_shift_of_nothing_is_zero():
    empty = torch.zeros(0)
    assert bco_shift(empty, empty, beta=1.0).item() == 0.0
    assert bco_shift(torch.ones(2), empty, beta=2.0).item() == 2.0


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        BCO(TinyPolicy(), reference=FrozenReference(), **options)

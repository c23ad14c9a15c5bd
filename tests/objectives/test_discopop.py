import math

import pytest
import torch

from lit_pref.functional.preference import discopop_loss
from lit_pref.objectives import DiscoPOP
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestDiscoPOP(ObjectiveTester):
    objective = DiscoPOP
    options = {"beta": 0.5, "temperature": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(
                (
                    lambda z: (
                        -math.log(sigmoid(z)) * (1 - sigmoid(z / 0.5))
                        + math.exp(-z) * sigmoid(z / 0.5)
                    )
                )(0.5 * (p.h_w - p.h_l))
                for p in numbers
            )
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # At 0: (log 2 + 1) / 2. Far to the right exp(-z), far to the left softplus(-z).
    delta = torch.tensor([0.0, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    losses = discopop_loss(delta, beta=1.0, temperature=0.05)
    expected = [(math.log(2) + 1) / 2, math.exp(-3), math.log1p(math.exp(3))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9)
    # Slope at 0: m = 1/2, m' = 1/(4 tau) = 5: (-1/2)/2 - 5 log 2 + (-1)/2 + 5.
    (grad,) = torch.autograd.grad(losses.sum(), delta)
    assert grad[0].item() == pytest.approx(-0.75 + 5 * (1 - math.log(2)))


def test_far_from_zero_it_stays_finite():
    delta = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = discopop_loss(delta, beta=1.0, temperature=0.05)
    (grad,) = torch.autograd.grad(losses.sum(), delta)
    assert losses.tolist() == [1e4, 0.0]
    assert grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"temperature": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        DiscoPOP(TinyPolicy(), reference=FrozenReference(), **options)

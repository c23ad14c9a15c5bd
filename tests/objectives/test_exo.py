import math

import pytest
import torch

from lit_pref.functional.preference_reference import exo_loss
from lit_pref.objectives import EXO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestEXO(ObjectiveTester):
    objective = EXO
    options = {"beta": 0.5, "label_smoothing": 0.01}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(
                (lambda q: q * math.log(q / 0.99) + (1 - q) * math.log((1 - q) / 0.01))(
                    sigmoid(0.5 * (p.h_w - p.h_l))
                )
                for p in numbers
            )
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # p = 1/2: 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1) = 0.5 * log(25 / 9) = 0.5108256.
    # p = 0.9, at beta * delta = log 9: the divergence is 0 and flat.
    chosen = torch.tensor([0.0, math.log(9.0)], dtype=torch.float64, requires_grad=True)
    losses = exo_loss(chosen, torch.zeros(2).double(), beta=1.0, label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([0.5108256, 0.0], abs=1e-6)
    # d/dz = p (1 - p) (log(p / (1-p)) - log(0.9 / 0.1)): at p = 1/2, -log(9) / 4.
    (grad,) = torch.autograd.grad(losses.sum(), chosen)
    assert grad.tolist() == pytest.approx([-math.log(9) / 4, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"label_smoothing": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        EXO(TinyPolicy(), reference=FrozenReference(), **options)

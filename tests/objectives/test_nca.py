import math

import pytest
import torch

from lit_pref.functional.preference_reference import nca_loss
from lit_pref.objectives import NCA
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestNCA(ObjectiveTester):
    objective = NCA
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(
                -math.log(sigmoid(0.5 * p.h_w))
                - 0.5 * math.log(sigmoid(-0.5 * p.h_w))
                - 0.5 * math.log(sigmoid(-0.5 * p.h_l))
                for p in numbers
            )
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # At 0: (1 + 1/2 + 1/2) log 2. At rewards (1, -1): 0.3132617 + 1.3132617 / 2 + 0.3132617 / 2.
    chosen = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, -2.0], dtype=torch.float64, requires_grad=True)
    losses = nca_loss(chosen, rejected, beta=0.5)
    assert losses.tolist() == pytest.approx([2 * math.log(2), 1.1265234], abs=1e-6)
    # Slopes at 0: chosen (-0.5 + 0.25) beta, rejected 0.25 beta.
    up, down = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert (up[0].item(), down[0].item()) == pytest.approx((-0.125, 0.125))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        NCA(TinyPolicy(), reference=FrozenReference(), **options)

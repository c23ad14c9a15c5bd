import pytest
import torch

from lit_pref.functional.preference_reference import sppo_loss
from lit_pref.objectives import SPPO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestSPPO(ObjectiveTester):
    objective = SPPO
    options = {"eta": 4.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = sum((p.h_w - 2) ** 2 + (p.h_l + 2) ** 2 for p in numbers) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # eta = 10: targets are +5 and -5. (1 - 5)^2 + (-2 + 5)^2 = 25; slopes 2 (1 - 5), 2 (-2 + 5).
    chosen = torch.tensor([1.0], requires_grad=True)
    rejected = torch.tensor([-2.0], requires_grad=True)
    loss = sppo_loss(chosen, rejected, eta=10.0)
    up, down = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert (loss.item(), up.item(), down.item()) == (25.0, -8.0, 6.0)


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        SPPO(TinyPolicy(), reference=FrozenReference(), **options)

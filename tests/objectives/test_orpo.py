import math

import pytest
import torch

from lit_pref.functional.reference_free import odds_ratio_loss
from lit_pref.objectives import ORPO
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def odds_ratio(pair):
    w, l = math.exp(pair.w / pair.len_w), math.exp(pair.l / pair.len_l)  # noqa: E741
    return (w / (1 - w)) / (l / (1 - l))


class TestORPO(ObjectiveTester):
    objective = ORPO

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            ratio = odds_ratio(p)
            total += -p.w / p.len_w - 0.1 * math.log(ratio / (1 + ratio))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestORPOWithSums(ObjectiveTester):
    objective = ORPO
    options = {"nll_reduction": "sum", "beta": 2.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            ratio = odds_ratio(p)
            total += -p.w - 2.0 * math.log(ratio / (1 + ratio))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


def test_numbers_by_hand():
    # p_w = 0.8: odds 4; p_l = 0.5: odds 1. Ratio 4: -log(4/5) = 0.2231436.
    # Slope in log p_w: -sigmoid(-log 4) * d log odds / d log p = -0.2 * 1 / (1 - 0.8) = -1.
    chosen = torch.tensor([0.8], dtype=torch.float64).log().requires_grad_()
    loss = odds_ratio_loss(chosen, torch.tensor([0.5], dtype=torch.float64).log())
    assert loss.item() == pytest.approx(0.2231436, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), chosen)
    assert grad.item() == pytest.approx(-1.0)


def test_certain_responses_stay_finite():
    # Probability 1 has infinite odds; an empty response has it.
    x = torch.zeros(1, requires_grad=True)
    loss = odds_ratio_loss(x, torch.tensor([-1.0]))
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"nll_reduction": "tokens"}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        ORPO(TinyPolicy(), **options)

import math

import pytest
import torch

from lit_pref.functional.reference_free import cpo_loss
from lit_pref.objectives import CPO
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestCPO(ObjectiveTester):
    objective = CPO
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        losses = [math.log1p(math.exp(-0.5 * (p.w - p.l))) - p.w for p in numbers]
        assert whole_loss(module, batch) == pytest.approx(sum(losses) / 8, rel=1e-6)


class TestCPOWithMeans(ObjectiveTester):
    objective = CPO
    options = {"nll_reduction": "mean", "nll_coef": 0.5, "label_smoothing": 0.2}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            z = 0.1 * (p.w - p.l)
            total += 0.8 * math.log1p(math.exp(-z)) + 0.2 * math.log1p(math.exp(z))
            total -= 0.5 * p.w / p.len_w
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


def test_numbers_by_hand():
    # z = 0.5 * (-1 - -3) = 1: softplus(-1) = 0.3132617, slope in the rejected 0.5 * sigmoid(-1).
    rejected = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    loss = cpo_loss(torch.tensor([-1.0], dtype=torch.float64), rejected, beta=0.5)
    assert loss.item() == pytest.approx(0.3132617, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), rejected)
    assert grad.item() == pytest.approx(0.5 / (1 + math.e))


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"label_smoothing": 0.5}, {"nll_coef": -1.0}, {"nll_reduction": "tokens"}],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        CPO(TinyPolicy(), **options)

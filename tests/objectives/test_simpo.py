import math

import pytest
import torch

from lit_pref.functional.reference_free import preference_loss, simpo_loss
from lit_pref.objectives import SimPO
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def softplus(x):
    return math.log1p(math.exp(x))


class TestSimPO(ObjectiveTester):
    objective = SimPO

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        logits = [2.0 * (p.w / p.len_w - p.l / p.len_l) - 0.5 for p in numbers]
        expected = sum(softplus(-z) for z in logits) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


class TestSimPOWithEverything(ObjectiveTester):
    objective = SimPO
    options = {"beta": 1.5, "gamma": 0.3, "label_smoothing": 0.1, "nll_coef": 0.2}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            z = 1.5 * (p.w / p.len_w - p.l / p.len_l) - 0.3
            total += 0.9 * softplus(-z) + 0.1 * softplus(z) - 0.2 * p.w / p.len_w
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


def test_numbers_by_hand():
    # z = 2 * (-0.5 - -1) - 0.5 = 0.5: softplus(-0.5) = 0.4740770, slope -2 * sigmoid(-0.5).
    chosen = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    loss = simpo_loss(chosen, torch.tensor([-1.0], dtype=torch.float64), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(0.4740770, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), chosen)
    assert grad.item() == pytest.approx(-2 / (1 + math.exp(0.5)))


def test_smoothing_mixes_both_labels():
    z = torch.tensor([1.0], dtype=torch.float64)
    # softplus(-1) = 0.3132617, softplus(1) = 1.3132617
    assert preference_loss(z, label_smoothing=0.25).item() == pytest.approx(0.5632617, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"gamma": -1.0}, {"label_smoothing": 0.5}, {"nll_coef": -1.0}]
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        SimPO(TinyPolicy(), **options)

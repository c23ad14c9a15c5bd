import math

import pytest
import torch

from lit_pref.functional.reference_free import unlikelihood_loss
from lit_pref.objectives import Unlikelihood
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestUnlikelihood(ObjectiveTester):
    objective = Unlikelihood
    options = {"alpha": 3.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        batch = make_batch(round)
        losses = [-p.w - 3 * math.log(1 - math.exp(p.l)) for p in pair_numbers(module, batch)]
        assert whole_loss(module, batch) == pytest.approx(sum(losses) / 8, rel=1e-6)


class TestUnlikelihoodPerToken(ObjectiveTester):
    objective = Unlikelihood
    options = {"probability": "mean"}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            total += -p.w / p.len_w - math.log(1 - math.exp(p.l / p.len_l))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


def test_numbers_by_hand():
    # -log 1/4 - 2 log(1 - 1/2) = 1.3862944 + 1.3862944; slope in log p_l: 2 * 0.5 / 0.5 = 2.
    chosen = torch.tensor([0.25], dtype=torch.float64).log()
    rejected = torch.tensor([0.5], dtype=torch.float64).log().requires_grad_()
    loss = unlikelihood_loss(chosen, rejected, alpha=2.0)
    assert loss.item() == pytest.approx(2.7725887, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), rejected)
    assert grad.item() == pytest.approx(2.0)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"probability": "max"}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        Unlikelihood(TinyPolicy(), **options)

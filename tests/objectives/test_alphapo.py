import math

import pytest
import torch

from lit_pref.functional.reference_free import alphapo_reward
from lit_pref.objectives import AlphaPO, SimPO
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestAlphaPO(ObjectiveTester):
    objective = AlphaPO

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        batch = make_batch(round)
        total = 0.0
        for p in pair_numbers(module, batch):
            prob_w, prob_l = math.exp(p.w / p.len_w), math.exp(p.l / p.len_l)
            reward_w, reward_l = ((1 - q**-0.25) / 0.25 for q in (prob_w, prob_l))
            total += math.log1p(math.exp(-(2.5 * (reward_w - reward_l) - 0.25)))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)

    def test_alpha_zero_is_simpo(self):
        module, round = self.prepared(alpha=0.0, beta=2.0, gamma=0.5, nll_coef=0.1)
        twin = SimPO(module.policy, beta=2.0, gamma=0.5, nll_coef=0.1)
        batch = make_batch(round)
        assert whole_loss(module, batch) == pytest.approx(whole_loss(twin, batch), rel=1e-12)


class TestNegativeAlpha(ObjectiveTester):
    objective = AlphaPO
    options = {"alpha": -0.5, "label_smoothing": 0.1}


def test_numbers_by_hand():
    # alpha = 1: 1 - 1/p. p = 1/2 gives -1, p = 1/4 gives -3; the slope in log p is 1/p.
    x = torch.tensor([0.5, 0.25], dtype=torch.float64).log().requires_grad_()
    rewards = alphapo_reward(x, alpha=1.0)
    assert rewards.tolist() == pytest.approx([-1.0, -3.0])
    (grad,) = torch.autograd.grad(rewards.sum(), x)
    assert grad.tolist() == pytest.approx([2.0, 4.0])


def test_small_alpha_approaches_the_log_prob_and_nothing_overflows():
    x = torch.tensor([-2.0], dtype=torch.float64)
    assert alphapo_reward(x, alpha=1e-9).item() == pytest.approx(-2.0, rel=1e-6)
    assert torch.isfinite(alphapo_reward(torch.tensor([-1000.0]), alpha=1.0)).all()


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"gamma": -1.0}, {"alpha": math.nan}, {"nll_coef": -1.0}],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        AlphaPO(TinyPolicy(), **options)

import pytest
import torch

from lit_pref.functional.preference import slic_loss
from lit_pref.objectives import SLiC
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestSLiC(ObjectiveTester):
    objective = SLiC
    options = {"beta": 0.5, "delta": 1.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = sum(max(0.0, 1.5 - 0.5 * (p.h_w - p.h_l)) for p in numbers) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


class TestSLiCWithoutReference(ObjectiveTester):
    objective = SLiC
    options = {"scores": "logp", "beta": 1.0, "nll_coef": 0.1}

    def test_loss_against_the_formula(self):
        module, round = self.prepared(reference=None)
        assert not module.needs.reference
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        hinges = [max(0.0, 1 - (p.w - p.l)) - 0.1 * p.w / p.len_w for p in numbers]
        assert whole_loss(module, batch) == pytest.approx(sum(hinges) / 8, rel=1e-6)


def test_numbers_by_hand():
    # delta - beta * x: 1 - 0.5 * 1, and beyond the margin nothing, neither loss nor slope.
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    losses = slic_loss(x, beta=0.5, delta=1.0)
    (grad,) = torch.autograd.grad(losses.sum(), x)
    assert losses.tolist() == [0.5, 0.0]
    assert grad.tolist() == [-0.5, 0.0]


def test_scores_on_log_ratios_need_a_reference():
    with pytest.raises(Refusal, match="needs a reference"):
        SLiC(TinyPolicy())


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"delta": 0.0},
        {"scores": "both"},
        {"nll_coef": -1.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        SLiC(TinyPolicy(), reference=FrozenReference(), **options)

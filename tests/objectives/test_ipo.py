import pytest
import torch

from lit_pref.functional.preference import ipo_loss
from lit_pref.objectives import IPO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


class TestIPO(ObjectiveTester):
    objective = IPO
    options = {"tau": 0.25}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = sum((p.h_w - p.h_l - 2.0) ** 2 for p in numbers) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


class TestIPOByMargin(ObjectiveTester):
    """The form of the bandit: the margin itself, 10."""

    objective = IPO
    options = {"margin": 10.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        expected = [(p.h_w - p.h_l - 10) ** 2 for p in pair_numbers(module, batch)]
        assert whole_loss(module, batch) == pytest.approx(sum(expected) / 8, rel=1e-6)


class TestIPOPerToken(ObjectiveTester):
    """TRL's form: every log-ratio over its length."""

    objective = IPO
    options = {"tau": 0.25, "reduction": "mean"}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        expected = [
            (p.h_w / p.len_w - p.h_l / p.len_l - 2) ** 2 for p in pair_numbers(module, batch)
        ]
        assert whole_loss(module, batch) == pytest.approx(sum(expected) / 8, rel=1e-6)


def test_numbers_by_hand():
    # tau = 0.05 is margin 10: (4 - 10)^2 = 36, slope 2 (4 - 10); at the margin it rests.
    delta = torch.tensor([4.0, 10.0], requires_grad=True)
    losses = ipo_loss(delta, margin=10.0)
    (grad,) = torch.autograd.grad(losses.sum(), delta)
    assert losses.tolist() == [36.0, 0.0]
    assert grad.tolist() == [-12.0, 0.0]
    assert IPO(TinyPolicy(), reference=FrozenReference(), tau=0.05).margin == pytest.approx(10)


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"margin": -1.0},
        {"reduction": "median"},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        IPO(TinyPolicy(), reference=FrozenReference(), **options)

import math

import pytest
import torch

from lit_pref.functional.preference_reference import aot_loss
from lit_pref.objectives import AOT
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestAOT(ObjectiveTester):
    objective = AOT
    options = {"beta": 0.5}

    def test_group_of_weight_two(self):
        """Refused; see below."""

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        better = sorted(p.w - p.l for p in numbers)
        worse = sorted(p.ref_w - p.ref_l for p in numbers)
        logits = [0.5 * (a - b) for a, b in zip(better, worse, strict=True)]
        expected = sum(-math.log(sigmoid(z)) for z in logits) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


class TestAOTOnResponses(ObjectiveTester):
    objective = AOT
    options = {"beta": 0.5, "compare": "responses", "label_smoothing": 0.1}

    def test_group_of_weight_two(self):
        """Refused; see below."""

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        better, worse = sorted(p.h_w for p in numbers), sorted(p.h_l for p in numbers)
        logits = [0.5 * (a - b) for a, b in zip(better, worse, strict=True)]
        expected = [-0.9 * math.log(sigmoid(z)) - 0.1 * math.log(sigmoid(-z)) for z in logits]
        assert whole_loss(module, batch) == pytest.approx(sum(expected) / 8, rel=1e-6)


def test_numbers_by_hand():
    # Sorted: (1, 3) against (0, 3): differences 1 and 0, whatever the order of the input.
    better = torch.tensor([3.0, 1.0], dtype=torch.float64, requires_grad=True)
    worse = torch.tensor([0.0, 3.0], dtype=torch.float64)
    losses = aot_loss(better, worse, beta=1.0)
    assert losses.tolist() == pytest.approx([0.3132617, math.log(2)], abs=1e-6)
    # The gradient goes back to where each value came from: 3 was compared with 3, 1 with 0.
    (grad,) = torch.autograd.grad(losses.sum(), better)
    assert grad.tolist() == pytest.approx([-0.5, -sigmoid(-1)])


def test_groups_of_different_weights_are_refused():
    """A rank is of one pair in the first sample and of another in the second."""
    tester = TestAOT()
    groups = tester.groups()
    for group in groups:
        group.weight = 2.0
    same, double = tester.gradient_of(tester.groups()), tester.gradient_of(groups)
    assert torch.allclose(same, double)
    groups[0].weight, groups[1].weight = 0.5, 0.0  # one of weight 0 has no pairs
    with pytest.raises(Refusal, match=r"weights from 0\.5 to 2"):
        tester.gradient_of(groups)


def test_group_means_are_refused():
    with pytest.raises(Refusal, match="pair_mean"):
        AOT(TinyPolicy(), reference=FrozenReference(), pair_mean="group")


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"compare": "tokens"},
        {"label_smoothing": 0.5},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        AOT(TinyPolicy(), reference=FrozenReference(), **options)

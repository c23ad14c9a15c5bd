import math

import pytest
import torch

from lit_pref.functional.preference import (
    divergence_score,
    dpo_loss,
    length_desensitised_sum,
    wpo_log_weight,
)
from lit_pref.objectives import DPO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class DPOTester(ObjectiveTester):
    objective = DPO

    def score(self, h, length):
        """What stands for the log-ratio, by the formula of the paper at hand."""
        return h

    def extra(self, p):
        return 0.0

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        eps = self.options.get("label_smoothing", 0.0)
        total = 0.0
        for p in numbers:
            z = 0.5 * (self.score(p.h_w, p.len_w) - self.score(p.h_l, p.len_l))
            total -= (1 - eps) * math.log(sigmoid(z)) + eps * math.log(sigmoid(-z))
            total += self.extra(p)
        assert len(numbers) == 8
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestDPO(DPOTester):
    options = {"beta": 0.5}


class TestConservative(DPOTester):
    options = {"beta": 0.5, "label_smoothing": 0.2}


class TestWithNLL(DPOTester):
    options = {"beta": 0.5, "nll_coef": 0.7}

    def extra(self, p):
        return -0.7 * p.w / p.len_w


class TestLengthNormalised(DPOTester):
    options = {"beta": 0.5, "reduction": "mean"}

    def score(self, h, length):
        return h / length


class TestForwardKL(DPOTester):
    options = {"beta": 0.5, "divergence": "forward_kl"}

    def score(self, h, length):
        return -math.exp(-h)


class TestJS(DPOTester):
    options = {"beta": 0.5, "divergence": "js"}

    def score(self, h, length):
        return math.log(2 * math.exp(h) / (1 + math.exp(h)))


class TestAlpha(DPOTester):
    options = {"beta": 0.5, "divergence": "alpha", "divergence_alpha": 0.3}

    def score(self, h, length):
        return (1 - math.exp(h) ** -0.3) / 0.3


class TestLengthDesensitised(ObjectiveTester):
    objective = DPO
    options = {"beta": 0.5, "ld_alpha": 0.25}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            ratio = module.policy(batch.tokens).logps - batch.notes.token["ref_logps"]
        parts = [part.tolist() for part in ratio.split(batch.tokens.lengths)]
        total = 0.0
        for i, j in batch.view.pairs.tolist():
            n = min(len(parts[i]), len(parts[j]))
            w, l = (sum(x[:n]) + 0.25 * sum(x[n:]) for x in (parts[i], parts[j]))  # noqa: E741
            total -= math.log(sigmoid(0.5 * (w - l)))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestByPosition(ObjectiveTester):
    """The reference code of arXiv 2404.14367: a loss at each position that both responses have."""

    objective = DPO
    options = {"beta": 0.5, "reduction": "position"}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            ratio = module.policy(batch.tokens).logps - batch.notes.token["ref_logps"]
        parts = [part.tolist() for part in ratio.split(batch.tokens.lengths)]
        total = 0.0
        for i, j in batch.view.pairs.tolist():
            at = [math.log(sigmoid(0.5 * (w - l))) for w, l in zip(parts[i], parts[j])]  # noqa: B905, E741
            total -= sum(at) / len(at)
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestWPO(ObjectiveTester):
    objective = DPO
    options = {"beta": 0.5, "weighting": "wpo", "wpo_max": 1.0}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            stats = module.policy(batch.tokens, stats=("sum_squares",))
        terms = (stats.logps - stats.sum_squares.log()).split(batch.tokens.lengths)
        total = 0.0
        for (i, j), p in zip(batch.view.pairs.tolist(), pair_numbers(module, batch), strict=True):
            weight = min(1.0, math.exp(float(terms[i].mean() + terms[j].mean())))
            total -= weight * math.log(sigmoid(0.5 * (p.h_w - p.h_l)))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestEverythingAtOnce(ObjectiveTester):
    objective = DPO
    options = {
        "beta": 0.5,
        "label_smoothing": 0.1,
        "nll_coef": 0.5,
        "reduction": "mean",
        "divergence": "js",
        "ld_alpha": 0.5,
        "weighting": "wpo",
        "pairs": "all",
        "pair_mean": "group",
    }


def test_numbers_by_hand():
    # z = 1: softplus(-1) = 0.3132617; smoothed by 0.2: 0.8 * 0.3132617 + 0.2 * 1.3132617.
    delta = torch.tensor([2.0], requires_grad=True)
    assert dpo_loss(delta, beta=0.5).item() == pytest.approx(0.3132617, abs=1e-6)
    smoothed = dpo_loss(delta, beta=0.5, label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.5132617, abs=1e-6)
    (grad,) = torch.autograd.grad(dpo_loss(delta, beta=0.5).sum(), delta)
    assert grad.item() == pytest.approx(-0.5 * sigmoid(-1))


def test_divergences_by_hand():
    # u = 2: log 2, -1/2, log(4/3), and with alpha = 1/2: 2 (1 - 1/sqrt 2).
    h = torch.tensor([math.log(2.0)], dtype=torch.float64)
    expected = {
        "reverse_kl": math.log(2),
        "forward_kl": -0.5,
        "js": math.log(4 / 3),
        "alpha": 2 * (1 - math.sqrt(0.5)),
    }
    for name, value in expected.items():
        assert divergence_score(h, name, alpha=0.5).item() == pytest.approx(value)


def test_alpha_goes_from_reverse_to_forward():
    h = torch.linspace(-1, 1, 5, dtype=torch.float64)
    near_zero = divergence_score(h, "alpha", alpha=1e-6)
    torch.testing.assert_close(near_zero, h, atol=1e-5, rtol=0)
    near_one = divergence_score(h, "alpha", alpha=1 - 1e-6)
    torch.testing.assert_close(near_one, 1 - (-h).exp(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_divergences_are_finite_far_out(name):
    h = torch.tensor([-500.0, 500.0], requires_grad=True)
    losses = dpo_loss(divergence_score(h, name), beta=0.1)
    (grad,) = torch.autograd.grad(losses.sum(), h)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(grad).all()


def test_length_desensitised_by_hand():
    # Responses (1, 2) and (3, 4, 5), public length 2: 1 + 2, and 3 + 4 + 5 / 2.
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    sums = length_desensitised_sum(
        values, torch.tensor([2, 3]), torch.tensor([1, 0]), torch.tensor([2, 2]), alpha=0.5
    )
    assert sums.tolist() == [9.5, 3.0]


def test_wpo_weight_by_hand():
    # Of probabilities (1/2, 1/4, 1/4) the squares sum to 3/8; the likeliest token has 4/3.
    weight = wpo_log_weight(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.375, 0.375]))
    assert weight.exp().tolist() == pytest.approx([4 / 3, 2 / 3])


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"label_smoothing": 0.5},
        {"nll_coef": -1.0},
        {"reduction": "median"},
        {"divergence": "tv"},
        {"divergence_alpha": 1.0},
        {"ld_alpha": 1.1},
        {"weighting": "all"},
        {"wpo_max": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        DPO(TinyPolicy(), reference=FrozenReference(), **options)

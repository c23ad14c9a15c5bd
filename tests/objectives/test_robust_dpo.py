import math

import pytest
import torch

from lit_pref.functional.preference import robust_dpo_loss
from lit_pref.objectives import RobustDPO
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestRobustDPO(ObjectiveTester):
    objective = RobustDPO
    options = {"beta": 0.5, "label_smoothing": 0.2}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = (
            sum(
                (
                    -0.8 * math.log(sigmoid(0.5 * (p.h_w - p.h_l)))
                    + 0.2 * math.log(sigmoid(-0.5 * (p.h_w - p.h_l)))
                )
                / 0.6
                for p in numbers
            )
            / 8
        )
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_numbers_by_hand():
    # At 0 both terms are log 2: (0.8 - 0.2) / 0.6 = 1 of it. At beta * delta = 1, with
    # softplus(-1) = 0.3132617 and softplus(1) = 1.3132617: (0.2506094 - 0.2626523) / 0.6.
    delta = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    losses = robust_dpo_loss(delta, beta=0.5, label_smoothing=0.2)
    assert losses.tolist() == pytest.approx([math.log(2), -0.0200716], abs=1e-6)
    # Slope at 0: (-0.8 * 0.5 - 0.2 * 0.5) * beta / 0.6.
    (grad,) = torch.autograd.grad(losses.sum(), delta)
    assert grad[0].item() == pytest.approx(-0.5 * 0.5 / 0.6)


def test_expectation_over_flips_is_the_clean_loss():
    delta = torch.linspace(-3, 3, 7, dtype=torch.float64)
    loss = lambda d: robust_dpo_loss(d, beta=0.5, label_smoothing=0.3)  # noqa: E731
    expected = -torch.nn.functional.logsigmoid(0.5 * delta)
    torch.testing.assert_close(0.7 * loss(delta) + 0.3 * loss(-delta), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"label_smoothing": 0.5},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        RobustDPO(TinyPolicy(), reference=FrozenReference(), **options)

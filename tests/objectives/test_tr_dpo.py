import math

import pytest
import torch

from lit_pref.functional.preference import dpo_loss
from lit_pref.objectives import TRDPO
from lit_pref.policies.reference import FrozenReference, MovingReference
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class TestTRDPO(ObjectiveTester):
    objective = TRDPO
    options = {"beta": 0.5}

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        numbers = pair_numbers(module, batch)
        assert len(numbers) == 8
        expected = sum(-math.log(sigmoid(0.5 * (p.h_w - p.h_l))) for p in numbers) / 8
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)


def test_without_moves_the_first_round_is_dpo():
    # One pair with delta = 2: -log sigmoid(1).
    assert dpo_loss(torch.tensor([2.0]), beta=0.5).item() == pytest.approx(0.3132617, abs=1e-6)


def moving(**options):
    policy = TinyPolicy()
    reference = MovingReference(**options)
    reference.prepare(policy)
    return policy, reference


def test_it_moves_at_round_starts_by_its_mix():
    policy, reference = moving(mix=0.25, every=2)
    start = policy.bias.detach().clone()
    with torch.no_grad():
        policy.bias.add_(1.0)
    reference.advance(policy, 0)
    reference.advance(policy, 1)
    torch.testing.assert_close(reference.copy.bias, start)
    # 0.75 * b + 0.25 * (b + 1) = b + 0.25, and then 0.75 * (b + 0.25) + 0.25 * (b + 1).
    reference.advance(policy, 2)
    torch.testing.assert_close(reference.copy.bias, start + 0.25)
    reference.advance(policy, 4)
    torch.testing.assert_close(reference.copy.bias, start + 0.4375)
    assert not reference.copy.bias.requires_grad


def test_mix_one_replaces_it():
    policy, reference = moving(mix=1.0)
    policy.perturb(1.0, seed=3)
    reference.advance(policy, 1)
    torch.testing.assert_close(reference.copy.state_dict(), policy.state_dict())


def test_its_weights_are_state():
    policy, reference = moving()
    reference.advance(policy.perturb(1.0, seed=3), 1)
    _, twin = moving()
    twin.load(reference.state())
    torch.testing.assert_close(twin.copy.state_dict(), reference.copy.state_dict())


def test_kl_is_still_measured_to_the_first_policy():
    policy, frozen = TinyPolicy(), FrozenReference()
    module = TRDPO(policy, reference=frozen)
    module.configure_model()
    start = frozen.copy.bias.clone()
    policy.perturb(1.0, seed=3)
    module.begin_round(1)
    torch.testing.assert_close(frozen.copy.bias, start)
    assert not torch.equal(module.moving.copy.bias, start)


@pytest.mark.parametrize("options", [{"mix": 0.0}, {"mix": 1.5}, {"every": 0}])
def test_refusals_of_the_reference(options):
    with pytest.raises(Refusal, match=next(iter(options))):
        MovingReference(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        TRDPO(TinyPolicy(), reference=FrozenReference(), **options)

"""The battery fails where it should."""

import pytest
import torch

from lit_pref.functional.rng import generator
from lit_pref.objectives import DPO, PairwiseModule
from lit_pref.sampling import NativeSampler
from lit_pref.testing import ObjectiveTester, TinyPolicy, tiny_groups
from lit_pref.types import FlatTokens, Needs, Prompt


class Base(PairwiseModule):
    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True

    def pair_loss(self, chosen, rejected, *, margin):
        return (1 - (chosen.log_ratio - rejected.log_ratio)).square(), {}


class WrongFlag(Base):
    negative_gradient = False


class DependsOnMicroBatch(Base):
    def pair_loss(self, chosen, rejected, *, margin):
        losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
        return losses * len(losses), metrics


class DependsOnOrder(Base):
    def pair_loss(self, chosen, rejected, *, margin):
        losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
        return losses * (1 + chosen.index), metrics


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.01


class DifferentiatesWrongly(Base):
    def pair_loss(self, chosen, rejected, *, margin):
        losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
        return WrongGradient.apply(losses), metrics


class NotFinite(Base):
    def pair_loss(self, chosen, rejected, *, margin):
        logits = chosen.log_ratio - rejected.log_ratio
        return 1 / (logits - logits.detach()), {}


class Forgets(Base):
    """Training changes it and no checkpoint knows."""

    rounds = 0

    def observe(self, round):
        self.rounds += 1

    def pair_loss(self, chosen, rejected, *, margin):
        losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
        return losses * self.rounds, metrics


def battery_of(kind):
    class Tester(ObjectiveTester):
        objective = kind

    return Tester()


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (WrongFlag, "test_negative_gradient_flag"),
        (DependsOnMicroBatch, "test_micro_batches"),
        (DependsOnMicroBatch, "test_processes"),
        (DependsOnOrder, "test_order"),
        (DifferentiatesWrongly, "test_gradient_against_finite_differences"),
        (NotFinite, "test_gradient_is_finite_and_not_zero"),
        (Forgets, "test_state_survives_a_checkpoint"),
    ],
)
def test_mistakes_are_found(kind, test):
    with pytest.raises(AssertionError):
        getattr(battery_of(kind), test)()


class TestASubclassOfAFinalClass(ObjectiveTester):
    """Users may subclass DPO and run the same battery."""

    class Mine(DPO):
        def pair_loss(self, chosen, rejected, *, margin):
            losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
            return losses + 0.1 * chosen.log_ratio.square(), metrics

    objective = Mine


def test_stop_gradients_are_held_by_the_finite_differences():
    class Stops(Base):
        def pair_loss(self, chosen, rejected, *, margin):
            losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
            return losses * chosen.logps.detach().exp(), metrics

    battery_of(Stops).test_gradient_against_finite_differences()


def test_the_tiny_policy_decodes_what_it_scores():
    policy = TinyPolicy()
    prompt = Prompt(id=0, text="", ids=[1, 2, 3])
    (group,) = NativeSampler(max_new_tokens=4).sample(
        policy, [prompt], key=(0,), occurrences=[0], responses=3, text=str
    )
    scored = policy.token_logps(FlatTokens.from_groups([group])).logps.tolist()
    sampled = [x for r in group.responses for x in r.policy_logps]
    assert sampled == pytest.approx(scored, rel=1e-5)


def test_tiny_groups_are_a_function_of_their_seed():
    first, second = tiny_groups(seed=3), tiny_groups(seed=3)
    assert [g.to_json() for g in first] == [g.to_json() for g in second]
    assert first[0].to_json() != tiny_groups(seed=4)[0].to_json()
    assert generator(0, "a").initial_seed() != generator(0, "b").initial_seed()

import numpy as np
import pytest
import torch

from lit_pref.objectives import REINFORCE
from lit_pref.testing.batches import gradients, make_batch, response_sums, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestREINFORCE(ObjectiveTester):
    objective = REINFORCE

    def test_loss_against_the_formula(self):
        """Leave-one-out advantages on whole responses, mean over responses."""
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            logps = response_sums(module.policy(batch.tokens).logps, batch.tokens)
        rewards = np.array([[r.reward for r in g.responses] for g in round.groups])
        count = rewards.shape[1]
        others = (rewards.sum(1, keepdims=True) - rewards) / (count - 1)
        expected = -((rewards - others).ravel() * np.array(logps)).mean()
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-5)


class TestRLOO(ObjectiveTester):
    objective = REINFORCE
    options = {"kl_coef": 0.05}

    def test_the_penalty_is_part_of_the_reward(self):
        _, round = self.prepared()
        batch = make_batch(round)
        notes = batch.notes.token
        kl = np.array(response_sums(notes["old_logps"] - notes["ref_logps"], batch.tokens))
        count = len(round.groups[0].responses)
        rewards = np.array([r.reward for r in round.kept()]) - 0.05 * kl
        rewards = rewards.reshape(-1, count)
        others = (rewards.sum(1, keepdims=True) - rewards) / (count - 1)
        found = batch.view.response["advantage"].double().numpy()
        assert found == pytest.approx((rewards - others).ravel(), rel=1e-4, abs=1e-6)


class TestREINFORCEWithPenaltyInTheLoss(ObjectiveTester):
    objective = REINFORCE
    options = {"kl_coef": 0.1, "kl_in": "loss", "baseline": "batch_mean", "entropy_coef": 0.01}


class TestREINFORCEOnZScores(ObjectiveTester):
    objective = REINFORCE
    options = {"baseline": "group_zscore", "denominator": "tokens"}


class TestREINFORCEOnARunningMean(ObjectiveTester):
    objective = REINFORCE
    options = {"baseline": "running_mean"}


class TestREINFORCEShifted(ObjectiveTester):
    objective = REINFORCE
    options = {"shift": "min"}


class TestREINFORCEShiftedWithKLInLoss(ObjectiveTester):
    objective = REINFORCE
    options = {"shift": "min", "kl_coef": 5.0, "kl_in": "loss"}


class TestREINFORCEShiftedWithKLToGo(ObjectiveTester):
    objective = REINFORCE
    options = {"shift": "min", "kl_coef": 5.0, "kl_in": "reward_to_go"}


class TestREINFORCEWithImportance(ObjectiveTester):
    objective = REINFORCE
    options = {"importance": "token", "importance_cap": 1.2}


class TestREINFORCEWithResponseImportance(ObjectiveTester):
    objective = REINFORCE
    options = {"importance": "response", "importance_cap": 3.0}


GROUP = torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"baseline": "none"}, [1, 4]),
        ({"baseline": "batch_mean"}, [-1.5, 1.5]),
        ({"baseline": "leave_one_out"}, [-3, 3]),
        ({"baseline": "group_zscore"}, [-1, 1]),
        ({"baseline": "none", "shift": "min"}, [0, 3]),
    ],
)
def test_baselines_by_hand(options, expected):
    found = REINFORCE(TinyPolicy(), **options).advantages(tensor(1, 4), GROUP, 1)
    assert found.tolist() == pytest.approx(expected)


def test_the_running_mean_includes_the_present_round():
    module = REINFORCE(TinyPolicy(), baseline="running_mean")
    assert module.advantages(tensor(1, 3), GROUP, 1).tolist() == [-1, 1]
    module.reward_sum.fill_(4.0)
    module.reward_count.fill_(2)
    # seen 4 over 2, now 5 + 11: mean (4 + 16) / 4 = 5
    assert module.advantages(tensor(5, 11), GROUP, 1).tolist() == [0, 6]
    twin = REINFORCE(TinyPolicy(), baseline="running_mean")
    twin.load_objective_state(module.objective_state())
    assert twin.advantages(tensor(5, 11), GROUP, 1).tolist() == [0, 6]


def test_the_running_mean_is_of_penalised_rewards_in_every_round():
    tester = TestREINFORCEOnARunningMean()
    module = tester.module(kl_coef=0.2)
    first = tester.round(module, tester.groups())
    second = tester.round(module, tester.groups(seed=4))

    def penalised(round):
        notes = round.notes.token
        kl = response_sums((notes["old_logps"] - notes["ref_logps"]).double(), round.tokens())
        return np.array([r.reward for r in round.kept()]) - 0.2 * np.array(kl)

    seen = np.concatenate([penalised(first), penalised(second)])
    found = second.view.response["advantage"].double().numpy()
    assert found == pytest.approx(penalised(second) - seen.mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("denominator", ["responses", "tokens", "response_mean"])
def test_a_group_of_weight_two_counts_like_two(denominator):
    tester = TestREINFORCEWithImportance()
    options = {"baseline": "none", "denominator": denominator}
    found = []
    for groups in (tester.groups(), [*tester.groups()[:1], *tester.groups()]):
        if len(groups) == tester.group_count:
            groups[0].weight = 2.0
        module = tester.module(**options)
        found.append(gradients(module, make_batch(tester.round(module, groups))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_importance_weights_stored_samples():
    assert REINFORCE(TinyPolicy()).needs.fresh
    module = REINFORCE(TinyPolicy(), importance="token")
    assert not module.needs.fresh
    assert module.needs.behaviours


def test_the_shift_leaves_no_negative_gradient():
    assert REINFORCE(TinyPolicy()).negative_gradient
    assert not REINFORCE(TinyPolicy(), shift="min").negative_gradient


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": "mean"}, "leave_one_out"),
        ({"importance": "sequence"}, "none, token, response"),
        ({"importance_cap": 0}, "importance_cap"),
        ({"kl_coef": -1}, "kl_coef"),
        ({"kl_coef": 0.1}, "reference=frozen"),
        ({"kl_in": "advantage"}, "reward_to_go"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(Refusal, match=words):
        REINFORCE(TinyPolicy(), **options)

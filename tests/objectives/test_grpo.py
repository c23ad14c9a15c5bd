import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lit_pref.objectives import GRPO
from lit_pref.testing.batches import make_batch, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal

CONFIGS = Path(__file__).parents[2] / "configs" / "objective"


def published(name):
    """The arguments of a YAML, with a length limit in place of the sampler's."""
    fields = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    drop = ("name", "_target_", "negative_weight")
    out = {k: v for k, v in fields.items() if k not in drop}
    out = {k: float(v) if k.startswith("epsilon") else v for k, v in out.items()}
    return {**out, "max_tokens": 7}


class RelativeTester(ObjectiveTester):
    """Each relative against its formula, response by response in NumPy."""

    objective = GRPO

    def expected(self, logps, old, ref, advantages, lengths):
        raise NotImplementedError

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            logps = module.policy(batch.tokens).logps.numpy()
        notes = {k: v.double().numpy() for k, v in batch.notes.token.items()}
        rewards = np.array([[r.reward for r in g.responses] for g in round.groups])
        cut = np.cumsum(batch.tokens.lengths)[:-1]
        parts = [np.split(x, cut) for x in (logps, notes["old_logps"])]
        ref = np.split(notes["ref_logps"], cut) if "ref_logps" in notes else parts[1]
        assert whole_loss(module, batch) == pytest.approx(
            self.expected(*parts, ref, rewards), rel=1e-5
        )


def zscore(rewards):
    centred = rewards - rewards.mean(1, keepdims=True)
    return (centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()


def clipped(ratio, advantage, low, high):
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


class TestGRPO(RelativeTester):
    options = published("grpo")

    def expected(self, logps, old, ref, rewards):
        total = 0.0
        for x, o, r, a in zip(logps, old, ref, zscore(rewards), strict=True):
            kl = np.exp(r - x) - (r - x) - 1
            total += (clipped(np.exp(x - o), a, 0.2, 0.2) + 0.04 * kl).mean()
        return total / len(logps)


class TestDrGRPO(RelativeTester):
    options = published("dr_grpo")

    def expected(self, logps, old, ref, rewards):
        advantages = (rewards - rewards.mean(1, keepdims=True)).ravel()
        sums = [
            clipped(np.exp(x - o), a, 0.2, 0.2).sum()
            for x, o, a in zip(logps, old, advantages, strict=True)
        ]
        return sum(sums) / 7 / len(sums)


class TestDAPO(RelativeTester):
    options = published("dapo")

    def expected(self, logps, old, ref, rewards):
        sums = [
            clipped(np.exp(x - o), a, 0.2, 0.28).sum()
            for x, o, a in zip(logps, old, zscore(rewards), strict=True)
        ]
        return sum(sums) / sum(map(len, logps))


class TestGSPO(RelativeTester):
    options = published("gspo")

    def expected(self, logps, old, ref, rewards):
        losses = [
            clipped(np.exp((x - o).mean()), a, 3e-4, 4e-4)
            for x, o, a in zip(logps, old, zscore(rewards), strict=True)
        ]
        return sum(losses) / len(losses)


class TestCISPO(RelativeTester):
    options = published("cispo")

    def expected(self, logps, old, ref, rewards):
        sums = [
            -(np.minimum(np.exp(x - o), 3.0) * a * x).sum()
            for x, o, a in zip(logps, old, zscore(rewards), strict=True)
        ]
        return sum(sums) / sum(map(len, logps))


class TestReinforcePP(RelativeTester):
    options = published("reinforce_pp")

    def expected(self, logps, old, ref, rewards):
        centred = (rewards - rewards.mean()).ravel()
        per_token = [
            a - 0.01 * (o - r)[::-1].cumsum()[::-1]
            for a, o, r in zip(centred, old, ref, strict=True)
        ]
        flat = np.concatenate(per_token)
        flat = (flat - flat.mean()) / (flat.std() + 1e-8)
        ratio = np.exp(np.concatenate(logps) - np.concatenate(old))
        return clipped(ratio, flat, 0.2, 0.2).mean()


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    one = 1 / (math.sqrt(2) + 1e-4)
    assert GRPO(TinyPolicy()).advantages(rewards, group, 2).tolist() == pytest.approx(
        [-one, one, 0, 0]
    )
    plain = GRPO(TinyPolicy(), scale="none", baseline="none")
    assert plain.advantages(rewards, group, 2).tolist() == rewards.tolist()
    # mean 3.5, population std sqrt((6.25 + 0.25 + 2.25 + 2.25) / 4)
    batch = GRPO(TinyPolicy(), scale="batch", baseline="batch")
    assert batch.advantages(rewards, group, 2).tolist() == pytest.approx(
        [x / math.sqrt(2.75) for x in (-2.5, -0.5, 1.5, 1.5)], rel=1e-6
    )

    # no mean is subtracted: 1 and 3 over their deviation of 1, 10 and 30 over theirs of 10
    alone = GRPO(TinyPolicy(), scale="batch", baseline="none")
    assert alone.advantages(rewards[:2] * 10, group[:2], 1).tolist() == pytest.approx([1, 3])
    assert alone.advantages(rewards[2:], group[:2], 1).tolist() == [5, 5]


def test_a_group_of_equal_rewards_has_no_advantage_whatever_the_baseline():
    rewards, group = torch.full((3,), 0.7, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    assert GRPO(TinyPolicy()).advantages(rewards, group, 1).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": "response"}, "token, sequence"),
        ({"clip": "none"}, "both, weight"),
        ({"epsilon_low": 2.0}, "epsilon_low"),
        ({"epsilon_high": -1.0}, "epsilon_high"),
        ({"scale": "round"}, "group, batch, none"),
        ({"baseline": "batch"}, "scale=batch"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(Refusal, match=words):
        GRPO(TinyPolicy(), **options)

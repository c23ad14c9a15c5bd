import numpy as np
import pytest
import torch

from lit_pref.objectives import PPO
from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import make_batch, make_round, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import Refusal, Round


def spread(seed=3):
    """A critic whose values differ, so that nothing cancels."""
    return ScalarHead(init="normal", bias=True, seed=seed)


class PPOTester(ObjectiveTester):
    objective = PPO

    def make(self, policy, **shared):
        return PPO(policy, **{"critic": spread(), **self.options, **shared})


class TestPPO(PPOTester):
    options = {"kl_coef": 0.1, "value_coef": 0.5, "epsilon": 0.1}

    def test_loss_against_a_second_implementation(self):
        """In NumPy, response by response, from the annotated numbers."""
        module, round = self.prepared()
        batch = make_batch(round)
        with torch.no_grad():
            out = module.policy(batch.tokens, stats=("hidden",))
            values = module.critic(out.hidden).numpy()
        logps, lengths = out.logps.numpy(), batch.tokens.lengths
        old, ref, old_values = (
            batch.notes.token[n].double().numpy() for n in ("old_logps", "ref_logps", "values")
        )
        rewards = [r.reward for r in round.kept()]
        advantages, returns, start = [], [], 0
        for reward, n in zip(rewards, lengths, strict=True):
            part = slice(start, start + n)
            r = -0.1 * (old[part] - ref[part])
            r[-1] += reward
            v = np.append(old_values[part], 0.0)
            carry, backwards = 0.0, []
            for t in reversed(range(n)):
                carry = r[t] + v[t + 1] - v[t] + 0.95 * carry
                backwards.append(carry)
            advantages += backwards[::-1]
            returns += list(np.array(backwards[::-1]) + v[:-1])
            start += n
        advantages, returns = np.array(advantages), np.array(returns)
        whitened = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = np.exp(logps - old)
        policy = np.maximum(-whitened * ratio, -whitened * np.clip(ratio, 0.9, 1.1)).mean()
        held = old_values + np.clip(values - old_values, -0.2, 0.2)
        value = 0.5 * np.maximum((values - returns) ** 2, (held - returns) ** 2).mean()
        assert whole_loss(module, batch) == pytest.approx(policy + 0.5 * value, rel=1e-5)
        explained = 1 - np.var(returns - old_values) / np.var(returns)
        assert round.counts["value/explained_variance"] == pytest.approx(explained, rel=1e-5)


class TestPPOPlain(PPOTester):
    options = {"value_clip": None, "whiten_advantages": "none", "lam": 1.0, "gamma": 0.9}


class TestPPOWithEntropy(PPOTester):
    options = {"entropy_coef": 0.05, "denominator": "response_mean"}


class TestPPOWithoutCritic(ObjectiveTester):
    objective = PPO
    options = {"advantage": "group_zscore", "kl_coef": 0.05, "kl_in": "loss"}


def test_the_kl_coefficient_adapts_and_is_kept():
    options = {"kl_coef": 0.2, "kl_target": 1.0, "kl_horizon": 100.0, "critic": spread()}
    tester = TestPPO()
    module = tester.module(**options)
    round = tester.round(module, tester.groups())
    sums = module.response_sums(module.log_ratio(round), round.tokens())
    error = float((sums.mean() / 1.0 - 1).clamp(-0.2, 0.2))
    expected = 0.2 * (1 + error * len(sums) / 100)
    assert float(module.kl_weight) == pytest.approx(expected, rel=1e-6)
    twin = PPO(TinyPolicy(), reference=FrozenReference(), **options)
    twin.load_objective_state(module.objective_state())
    assert float(twin.kl_weight) == float(module.kl_weight)


@pytest.mark.parametrize("options", [{}, {"kl_in": "reward_to_go"}])
def test_without_a_critic_the_adapted_coefficient_weighs_the_next_round(options):
    tester = TestPPOWithoutCritic()
    options = {"kl_coef": 0.2, "kl_in": "reward", "kl_target": 1e-3, "kl_horizon": 32.0, **options}
    adapted = tester.module(**options)
    tester.round(adapted, tester.groups())
    fixed = tester.module(**{**options, "kl_coef": float(adapted.kl_weight), "kl_target": None})
    fixed.policy.load_state_dict(adapted.policy.state_dict())
    assert float(adapted.kl_weight) != 0.2
    views = [make_round(m, tester.groups(seed=4), index=1).view for m in (adapted, fixed)]
    for kind in ("response", "token"):
        columns, others = (getattr(v, kind) for v in views)
        assert columns.keys() == others.keys()
        for name in columns:
            torch.testing.assert_close(columns[name], others[name])


@pytest.mark.parametrize("kl_in", ["reward", "reward_to_go", "loss"])
def test_without_a_critic_strictly_on_policy_rounds_have_their_notes(kl_in):
    tester = TestPPOWithoutCritic()
    module = tester.module(kl_in=kl_in)
    round = Round(index=0, groups=tester.groups(), strict=True)
    round.keep = module.select(round, seed=0)
    round.notes = module.annotate(round, module.forward_pass(None))
    view = module.view(round, seed=0)
    assert torch.isfinite(view.response["advantage"]).all()
    assert ("old_logps" in round.notes.token) == (kl_in != "loss")


def test_notes_are_made_without_dropout():
    tester = TestPPO()
    module = tester.module()
    module.policy.train()
    modes = []
    module.policy.register_forward_hook(lambda policy, *_: modes.append(policy.training))
    tester.round(module, tester.groups())
    assert module.policy.training
    assert modes[-1] is False


def test_the_critic_has_its_own_parameter_group_and_rate():
    module = PPO(TinyPolicy(), value_lr=0.5)
    module.configure_model()
    optimizer = module.optimizer_settings.build(module.parameter_groups())
    assert [g["lr"] for g in optimizer.param_groups] == [module.optimizer_settings.lr, 0.5]
    assert len(optimizer.param_groups[1]["params"]) == 2
    assert any(name.startswith("critic.") for name in module.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"lam": 1.5}, "lam"),
        ({"advantage": "mc"}, "gae, group_zscore"),
        ({"kl_target": 6.0}, "kl_coef above 0"),
        ({"kl_coef": 0.1}, "reference=frozen"),
        ({"kl_in": "reward_to_go"}, "kl_in=reward"),
        ({"denominator": "constant"}, "max_tokens"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(Refusal, match=words):
        PPO(TinyPolicy(), **options)

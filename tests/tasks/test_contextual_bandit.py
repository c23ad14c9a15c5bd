"""The 1-D bandit: the paper's numbers, prompts, the start, refusals."""

import pytest
import torch

from lit_pref.functional.bandit import action_rewards, reference_probs, reward_distribution
from lit_pref.policies import ModelSpec
from lit_pref.policies.context_mlp import ContextMLPPolicy, context_mlp
from lit_pref.tasks.contextual_bandit import ContextualBandit
from lit_pref.types import Group, Prompt, Refusal, Response


@pytest.fixture(scope="module")
def start():
    task = ContextualBandit(seed=3)
    return task, ContextMLPPolicy(context_mlp(seed=3), initialise=task.initialise).load()


def test_the_numbers_of_section_4():
    probs = reference_probs()
    assert [round(probs[k].item(), 5) for k in (0, 99, 16)] == [0.07809, 0.04223, 0.02681]
    assert probs[1:99].argmax() + 1 == 16
    for name, mean, best in (("r1", 0.03905, 0.3135), ("r2", 0.37719, 0.940)):
        made = reward_distribution(action_rewards(name), probs)
        assert made.mean() == pytest.approx(mean, abs=1e-5)
        assert made.best_of(10) == pytest.approx(best, abs=5e-4)
    assert action_rewards("r1").argmax() == 70 and action_rewards("r2").argmax() == 20
    assert action_rewards("r1_wide")[50].item() == pytest.approx(
        torch.exp(torch.tensor(-1.0)).item()
    )
    assert action_rewards("r1_wider")[40].item() == pytest.approx(
        torch.exp(torch.tensor(-1.0)).item()
    )


def test_prompts_depend_on_the_seed_and_never_meet_validation():
    first, again, other = (ContextualBandit(seed=s, train_prompts=50).prompts() for s in (0, 0, 1))
    assert [p.ids for p in first] == [p.ids for p in again] != [p.ids for p in other]
    assert len({p.id for p in first}) == 50 and all(p.id < 1000 for p in first)
    assert [p.id for p in ContextualBandit(seed=1).validation()] == list(range(1000, 1100))


def test_the_start_is_the_closed_form(start):
    task, policy = start
    values = task.exact(policy)
    assert values["kl"] < 0.005 and values["kl_reverse"] < 0.005
    assert values["reward"] == pytest.approx(0.03905, abs=0.004)
    assert values["entropy"] == pytest.approx(4.1173, abs=0.02)
    assert abs(values["h_margin_all"]) < 0.05
    worst = policy.action_logps(torch.arange(1000, 1100)).exp().sub(reference_probs()).abs().max()
    assert worst < 0.01  # in every context, also those never trained on


def test_exact_expectations_are_what_samples_estimate(start):
    task, policy = start
    probs = policy.action_logps(torch.arange(1000, 1100)).exp()
    drawn = torch.multinomial(
        probs, 2000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    sampled = task.rewards[drawn].mean().item()
    assert task.exact(policy)["reward"] == pytest.approx(sampled, abs=0.002)


def test_rewards_are_those_of_the_action():
    reward = ContextualBandit(seed=0, reward="r2").true_reward()
    group = Group(
        prompt=Prompt(id=5, text="5", ids=[5]), responses=[Response(ids=[20]), Response(ids=[30])]
    )
    assert reward.score([group]) == pytest.approx([1.0, 0.367879], abs=1e-6)
    group.responses[0].ids = [20, 20]
    with pytest.raises(ValueError, match="one action"):
        reward.score([group])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"train_prompts": 1001}, "from 1 to 1000"), ({"validation_prompts": 0}, "from 1 to 100"),
     ({"offline_prompts": -1}, "at least 0"), ({"reward": "r9"}, "r1")],
)  # fmt: skip
def test_refusals(arguments, words):
    with pytest.raises(Refusal, match=words):
        ContextualBandit(seed=0, **arguments)


def test_another_model_is_refused():
    with pytest.raises(Refusal, match="model=context_mlp"):
        ContextualBandit(seed=0).initialise(torch.nn.Linear(2, 2))
    small: ModelSpec = context_mlp(actions=50)
    with pytest.raises(Refusal, match="100 actions"):
        ContextualBandit(seed=0).initialise(small.load())

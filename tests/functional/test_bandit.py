"""The closed forms against the numbers of arXiv 2404.14367 (specification 4.2, 4.3, 4.6)."""

import itertools
import math

import pytest
import torch

from lit_pref.functional.bandit import (
    Distribution,
    action_rewards,
    entropy,
    mean_distribution,
    reference_probs,
    reward_distribution,
)
from lit_pref.types import Refusal


def printed(value: float, text: str) -> bool:
    """``value`` rounds to ``text``, digit by digit."""
    digits = len(text.split(".")[1]) if "." in text else 0
    return f"{value:.{digits}f}" == text


def float64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens() -> dict[str, Distribution]:
    probs = reference_probs()
    return {name: mean_distribution(action_rewards(name), probs) for name in ("r1", "r2")}


def test_reference_distribution():
    probs = reference_probs()
    assert probs.shape == (100,)
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-14)
    assert printed(probs[0].item(), "0.07809")
    assert printed(probs[99].item(), "0.04223")
    assert probs[1:99].argmax().item() + 1 == 16
    assert printed(probs[16].item(), "0.02681")
    # "bins 12-19 all >= 0.0248", as printed
    assert all(round(p, 4) >= 0.0248 for p in probs[12:20].tolist())
    assert printed(probs[60:81].sum().item(), "0.0457")
    assert printed(probs[10:31].sum().item(), "0.4542")
    assert printed(entropy(probs), "4.1173")


def test_reference_distribution_by_hand():
    # two bins: the edge is 0, F(0) = 1/2 + atan(0.7 / 0.4) / pi
    left = 0.5 + math.atan(1.75) / math.pi
    assert reference_probs(actions=2).tolist() == pytest.approx([left, 1 - left])


def test_rewards_by_hand():
    r1, r2 = action_rewards("r1"), action_rewards("r2")
    assert r1.argmax().item() == 70
    assert r2.argmax().item() == 20
    assert r1[70].item() == r2[20].item() == 1.0
    assert r1[60].item() == r1[80].item() == pytest.approx(math.exp(-1))
    assert r2[40].item() == pytest.approx(math.exp(-4))
    assert action_rewards("r1_wide")[50].item() == pytest.approx(math.exp(-1))
    assert action_rewards("r1_wider")[40].item() == pytest.approx(math.exp(-1))
    with pytest.raises(Refusal, match=r"r1, r2, r1_wide, r1_wider; got 'r3'"):
        action_rewards("r3")


@pytest.mark.parametrize(
    ("name", "precise", "mean", "best"),
    [("r1", "0.03905", "0.0390", "0.3135"), ("r2", "0.37719", "0.3772", "0.940")],
)
def test_anchors_of_one_action(name, precise, mean, best):
    one = reward_distribution(action_rewards(name), reference_probs())
    assert printed(one.mean(), precise)
    assert printed(one.mean(), mean)
    assert printed(one.best_of(10), best)


@pytest.mark.parametrize(
    ("name", "mean", "best", "std"),
    [("r1", "0.0390", "0.140", "0.0532"), ("r2", "0.3772", "0.5739", "0.1248")],
)
def test_anchors_of_nine_tokens(tokens, name, mean, best, std):
    assert printed(tokens[name].mean(), mean)
    assert printed(tokens[name].best_of(10), best)
    assert printed(tokens[name].std(), std)


def test_worst_of_ten_responses(tokens):
    assert printed(tokens["r2"].worst_of(10), "0.192")
    # 7e-5 to one digit starts at 6.5e-5: the stated error must be below the distance (7.7e-7)
    fine = mean_distribution(action_rewards("r1"), reference_probs(), log2_points=23)
    assert 9 / 2**24 < fine.worst_of(10) - 6.5e-5
    assert f"{fine.worst_of(10):.0e}" == "7e-05"


@pytest.mark.parametrize(("name", "legacy_mean"), [("r1", "0.053"), ("r2", "0.357")])
def test_mean_with_the_prompt_token(name, legacy_mean):
    rewards = action_rewards(name)
    response = reward_distribution(rewards, reference_probs()).mean()
    uniform = rewards.mean().item()
    assert printed(0.9 * response + 0.1 * uniform, legacy_mean)
    assert printed(0.9 + 0.1 * uniform, "0.918")


def test_best_and_worst_by_hand():
    # values 0, 1 with probabilities 1/4, 3/4; three draws
    coin = reward_distribution(float64([1.0, 0.0]), float64([0.75, 0.25]))
    assert coin.values.tolist() == [0.0, 1.0]
    assert coin.mean() == pytest.approx(0.75)
    assert coin.std() == pytest.approx(math.sqrt(3) / 4)
    assert coin.best_of(3) == pytest.approx(1 - 1 / 64)
    assert coin.worst_of(3) == pytest.approx(27 / 64)
    assert coin.best_of(1) == coin.worst_of(1) == pytest.approx(0.75)


def test_convolution_against_enumeration():
    rewards = float64([0.1, 0.35, 0.9])
    probs = float64([0.5, 0.3, 0.2])
    many = mean_distribution(rewards, probs, count=3, log2_points=19)
    triples = list(itertools.product(range(3), repeat=3))
    values = float64([sum(rewards[i].item() for i in t) / 3 for t in triples])
    weights = float64([math.prod(probs[i].item() for i in t) for t in triples])
    exact = reward_distribution(values, weights)
    bound = 3 / 2**20
    assert many.mean() == pytest.approx(exact.mean(), abs=bound)
    assert many.best_of(4) == pytest.approx(exact.best_of(4), abs=bound)
    assert many.worst_of(4) == pytest.approx(exact.worst_of(4), abs=bound)
    assert many.probs.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_default_grid_error_is_within_its_bound(tokens):
    # nine independent tokens: the mean and the std are known without any grid
    one = reward_distribution(action_rewards("r1"), reference_probs())
    assert tokens["r1"].mean() == pytest.approx(one.mean(), abs=9 / 2**20)
    assert tokens["r1"].std() == pytest.approx(one.std() / 3, abs=9 / 2**20)


def test_misuse_of_the_grid():
    ones = torch.ones(2).double()
    with pytest.raises(ValueError, match="within"):
        mean_distribution(2 * ones, ones / 2)
    with pytest.raises(ValueError, match="log2_points"):
        mean_distribution(ones, ones / 2, count=9, log2_points=2)


def test_entropy_by_hand():
    assert entropy(float64([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))

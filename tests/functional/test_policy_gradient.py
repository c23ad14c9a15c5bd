"""Policy-gradient maths against numbers worked out by hand and loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from lit_pref.functional.advantages import (
    generalised_advantages,
    group_zscore,
    leave_one_out,
    subtract_group_mean,
    subtract_mean,
    whiten,
)
from lit_pref.functional.policy_gradient import (
    adaptive_kl,
    capped_policy_loss,
    clipped_policy_loss,
    clipped_value_loss,
    k3_kl,
    probability_ratio,
    token_weights,
)
from lit_pref.functional.supervised import normalise_rewards

OWNER = torch.tensor([0, 0, 1])
LENGTHS = torch.tensor([2, 1])


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_baselines_by_hand():
    rewards, group = tensor(1, 2, 6, 5), torch.tensor([0, 0, 0, 1])
    # others of 1: (2 + 6)/2 = 4; of 2: 3.5; of 6: 1.5; the lone one has none
    assert leave_one_out(rewards, group, 2).tolist() == [-3, -1.5, 4.5, 0]
    assert subtract_group_mean(rewards, group, 2).tolist() == [-2, -1, 3, 0]
    assert subtract_mean(rewards).tolist() == [-2.5, -1.5, 2.5, 1.5]
    # squares 4 + 1 + 9 = 14: population std sqrt(14/3), estimated sqrt(14/2)
    z = group_zscore(rewards, group, 2)
    assert z.tolist() == pytest.approx([x / math.sqrt(14 / 3) for x in (-2, -1, 3)] + [0])
    z = group_zscore(rewards, group, 2, correction=1)
    assert z.tolist() == pytest.approx([x / math.sqrt(7) for x in (-2, -1, 3)] + [0])


@pytest.mark.parametrize(("reward", "count"), [(68.57, 13), (938.79, 16), (123456.7, 7)])
def test_equal_rewards_have_no_advantage(reward, count):
    """Their mean is not quite the reward in floating point."""
    rewards, group = tensor(*[reward] * count), torch.zeros(count, dtype=torch.long)
    assert float(subtract_group_mean(rewards, group, 1).abs().max()) > 0
    assert group_zscore(rewards, group, 1).tolist() == [0] * count
    for how in ("group", "round"):
        weight = torch.ones(count + 1)
        weight[-1] = 0  # what does not count may differ
        z = normalise_rewards(
            tensor(*rewards.tolist(), 5), torch.zeros(count + 1, dtype=torch.long), 1,
            how=how, weight=weight,
        )  # fmt: skip
        assert z.tolist() == [0] * (count + 1)


def test_whitening_by_hand():
    assert whiten(tensor(1, 3)).tolist() == pytest.approx([-1, 1])
    assert whiten(tensor(2, 6), shift=False).tolist() == pytest.approx([1, 3])
    assert whiten(tensor(2, 2), shift=False).tolist() == [2, 2]
    assert whiten(tensor(2, 2)).tolist() == [0, 0]
    assert len(whiten(tensor())) == 0


def test_ratios_by_hand():
    logps, old = tensor(-1, -2, -3), tensor(-1.5, -1, -3)
    assert probability_ratio(logps, old, OWNER, LENGTHS, level="token").tolist() == pytest.approx(
        [math.exp(0.5), math.exp(-1), 1]
    )
    mean = math.exp((0.5 - 1) / 2)
    found = probability_ratio(logps, old, OWNER, LENGTHS, level="sequence")
    assert found.tolist() == pytest.approx([mean, mean, 1])
    total = math.exp(0.5 - 1)
    found = probability_ratio(logps, old, OWNER, LENGTHS, level="response")
    assert found.tolist() == pytest.approx([total, total, 1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 1.0, -1.1, -1.0),  # inside
        (1.5, 1.0, -1.2, 0.0),  # above, would rise: cut
        (1.5, -1.0, 1.5, 1.0),  # above, would fall: kept
        (0.5, 1.0, -0.5, -1.0),  # below, would rise: kept
        (0.5, -1.0, 0.9, 0.0),  # below, would fall: cut at 1 - 0.1
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope):
    x = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    out = clipped_policy_loss(x, tensor(advantage), low=0.1, high=0.2)
    out.sum().backward()
    assert out.item() == pytest.approx(loss)
    assert x.grad.item() == pytest.approx(slope)


def test_capped_weights_by_hand():
    """The gradient in the log-prob is the clipped ratio times the advantage; none is lost."""
    logps = tensor(-1, -1, -1).requires_grad_()
    ratio = tensor(0.05, 1.0, 9.0)
    capped_policy_loss(logps, ratio, tensor(2, 2, -2), low=0.5, high=2).sum().backward()
    assert logps.grad.tolist() == pytest.approx([-0.5 * 2, -2, 3 * 2])
    logps.grad = None
    capped_policy_loss(logps, ratio, tensor(1, 1, 1), low=1, high=2).sum().backward()
    assert logps.grad.tolist() == pytest.approx([-0.05, -1, -3])


def test_k3_is_never_negative_and_unbiased():
    assert k3_kl(tensor(-1), tensor(-1)).item() == 0
    # ref/pi = 2: 2 - log 2 - 1
    assert k3_kl(tensor(0), tensor(math.log(2))).item() == pytest.approx(1 - math.log(2))
    pi, ref = tensor(0.7, 0.2, 0.1), tensor(0.3, 0.3, 0.4)
    exact = (pi * (pi / ref).log()).sum()
    assert (pi * k3_kl(pi.log(), ref.log())).sum().item() == pytest.approx(exact.item())


def test_value_loss_by_hand():
    # value 2, old 1, clip 0.5: held at 1.5; target 0: max(4, 2.25)/2; target 3: max(1, 2.25)/2
    two, one = tensor(2, 2), tensor(1, 1)
    found = clipped_value_loss(two, one, tensor(0, 3), clip=0.5)
    assert found.tolist() == [2.0, 1.125]
    assert clipped_value_loss(two, one, tensor(0, 3), clip=None).tolist() == [2.0, 0.5]


def test_adaptive_kl_by_hand():
    # KL 9 at target 6: error 0.5, cut to 0.2; 100 of 1000 responses: 0.1 x (1 + 0.02)
    found = adaptive_kl(tensor(0.1), tensor(9), target=6, horizon=1000, count=100)
    assert found.item() == pytest.approx(0.102)
    found = adaptive_kl(tensor(0.1), tensor(5.4), target=6, horizon=1000, count=100)
    assert found.item() == pytest.approx(0.1 * (1 - 0.1 * 0.1))


def test_token_weights_by_hand():
    weight = tensor(1, 0.5)
    for rule, expected in {
        "responses": [1, 1, 0.5],
        "tokens": [1, 1, 0.5],
        "response_mean": [0.5, 0.5, 0.5],
        "constant": [0.25, 0.25, 0.125],
    }.items():
        found = token_weights(OWNER, LENGTHS, weight, denominator=rule, constant=4)
        assert found.tolist() == expected, rule


def numpy_gae(rewards, values, lengths, gamma, lam):
    """One response after the other, straight from the definition."""
    out, start = [], 0
    for n in lengths:
        r, v = rewards[start : start + n], [*values[start : start + n], 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        out += [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
        start += n
    return np.array(out)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_generalised_advantages_against_the_definition(gamma, lam):
    draw = np.random.default_rng(0)
    lengths = [3, 1, 5, 2]
    rewards, values = draw.normal(size=11), draw.normal(size=11)
    found = generalised_advantages(
        torch.tensor(rewards), torch.tensor(values), lengths, gamma=gamma, lam=lam
    )
    assert found.numpy() == pytest.approx(numpy_gae(rewards, values, lengths, gamma, lam))


def test_generalised_advantages_without_responses():
    assert len(generalised_advantages(tensor(), tensor(), [], gamma=1.0, lam=1.0)) == 0

"""The paper's bandit in closed form: reference distribution, rewards, exact expectations.

``V`` is the number of actions (100), ``n`` the number of responses per prompt. Everything is
float64 on the CPU, and nothing is sampled.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_pref.types import Refusal

__all__ = [
    "ACTIONS",
    "RESPONSE_TOKENS",
    "Distribution",
    "RewardName",
    "action_rewards",
    "entropy",
    "mean_distribution",
    "reference_probs",
    "reward_distribution",
]

ACTIONS = 100
"""Number of actions of the 1-D bandit, and the vocabulary of the token bandit."""
RESPONSE_TOKENS = 9
"""Response tokens of the token bandit."""

RewardName = Literal["r1", "r2", "r1_wide", "r1_wider"]

# (peak, width) of exp(-((a - peak) / width)^2)
_PEAKS: dict[str, tuple[float, float]] = {
    "r1": (70.0, 10.0),
    "r2": (20.0, 10.0),
    "r1_wide": (70.0, 20.0),
    "r1_wider": (70.0, 30.0),
}


def reference_probs(
    *, actions: int = ACTIONS, location: float = -0.7, scale: float = 0.4
) -> Tensor:
    """The reference policy: a Cauchy variable squashed by tanh and cut into equal bins.

    ``p_k = F(atanh(e_{k+1})) - F(atanh(e_k))`` with the Cauchy distribution function
    ``F(z) = 1/2 + atan((z - location) / scale) / pi`` and edges ``e_k = -1 + 2 k / actions``
    (arXiv 2404.14367, section 4).

    Deviation: the paper's code bins 10 000 samples drawn before the seed is set, so that its
    reference differs in each process; this is the distribution that it samples from.

    Args:
        actions: number of bins ``V``.
        location: centre of the Cauchy distribution.
        scale: its half-width.

    Returns:
        [V] probabilities. They do not depend on the prompt or on earlier tokens.

    >>> round(reference_probs()[0].item(), 5)
    0.07809
    """
    edges = -1 + 2 * torch.arange(actions + 1, dtype=torch.float64) / actions
    cdf = 0.5 + torch.atan((torch.atanh(edges) - location) / scale) / math.pi
    return cdf.diff()


def action_rewards(reward: RewardName, *, actions: int = ACTIONS) -> Tensor:
    """The reward of each action: ``exp(-((a - peak) / width)^2)`` (arXiv 2404.14367, section 4).

    Args:
        reward: ``r1`` peaks at 70, where the reference is unlikely, ``r2`` at 20, at its mode;
            ``r1_wide`` and ``r1_wider`` are ``r1`` with width 20 and 30 in place of 10.
        actions: number of actions ``V``.

    Returns:
        [V] rewards in (0, 1].

    Raises:
        Refusal: the name is unknown.
    """
    if reward not in _PEAKS:
        raise Refusal(f"reward must be one of {', '.join(get_args(RewardName))}; got {reward!r}")
    peak, width = _PEAKS[reward]
    action = torch.arange(actions, dtype=torch.float64)
    return torch.exp(-(((action - peak) / width) ** 2))


def entropy(probs: Tensor) -> float:
    """Entropy in nats of one categorical distribution [V]; ``0 log 0`` is 0."""
    return -torch.special.xlogy(probs, probs).sum().item()


class Distribution(NamedTuple):
    """A distribution over finitely many numbers.

    Attributes:
        values: [M] numbers, ascending.
        probs: [M] their probabilities.
    """

    values: Tensor
    probs: Tensor

    def mean(self) -> float:
        """Expectation."""
        return (self.values * self.probs).sum().item()

    def std(self) -> float:
        """Standard deviation."""
        centred = self.values - self.mean()
        return (centred.square() * self.probs).sum().sqrt().item()

    def best_of(self, n: int) -> float:
        """Expected largest of ``n`` independent draws: ``sum_i v_i (F(v_i)^n - F(v_{i-1})^n)``."""
        power = self.probs.cumsum(0).clamp(0, 1) ** n
        return (self.values * power.diff(prepend=power.new_zeros(1))).sum().item()

    def worst_of(self, n: int) -> float:
        """Expected smallest of ``n`` independent draws."""
        return -Distribution(-self.values.flip(0), self.probs.flip(0)).best_of(n)


def reward_distribution(rewards: Tensor, probs: Tensor) -> Distribution:
    """The distribution of the reward of one action.

    Args:
        rewards: [V] reward of each action.
        probs: [V] probability of each action.
    """
    values, order = rewards.sort(stable=True)
    return Distribution(values, probs[order])


def mean_distribution(
    rewards: Tensor, probs: Tensor, *, count: int = RESPONSE_TOKENS, log2_points: int = 19
) -> Distribution:
    """The distribution of the mean reward of ``count`` independent actions, by convolution.

    Each action's reward is rounded to a grid on [0, 1] and the convolution of the grid is exact
    (FFT, round-off about 1e-16). The mean of a response moves by at most half a grid step, and so
    do ``mean``, ``best_of`` and ``worst_of``: their error is at most half a step, which is about
    ``count / 2^(log2_points + 1)`` (8.6e-6 by default, for 9 tokens), plus round-off.

    Args:
        rewards: [V] reward of each action, within [0, 1].
        probs: [V] probability of each action.
        count: number of actions in one response.
        log2_points: the FFT has ``2^log2_points`` points.

    Returns:
        Distribution over the grid of means.
    """
    size = 2**log2_points
    steps = (size - 1) // count
    if steps < 1:
        raise ValueError(f"2^log2_points = {size} must exceed count = {count}; raise log2_points")
    cells = (rewards.double() * steps).round().long()
    if cells.min() < 0 or cells.max() > steps:
        raise ValueError("rewards must lie within [0, 1]")
    one = torch.zeros(size, dtype=torch.float64).index_add_(0, cells, probs.double())
    many = torch.fft.irfft(torch.fft.rfft(one) ** count, n=size)[: steps * count + 1]
    means = torch.arange(steps * count + 1, dtype=torch.float64) / (steps * count)
    return Distribution(means, many.clamp(min=0))

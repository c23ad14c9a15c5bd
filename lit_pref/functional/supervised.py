"""Weights and terms of (weighted) maximum likelihood. ``B`` responses, ``K`` of one group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_pref.functional.segments import segment_sum, segment_varies

__all__ = [
    "Normalise",
    "exp_weights",
    "log1mexp",
    "normalise_rewards",
    "push_down",
    "top_k_mask",
    "unlikelihood",
]

Normalise = Literal["none", "group", "round"]


def exp_weights(rewards: Tensor, *, temperature: float, clip: float | None = None) -> Tensor:
    r"""Weights of reward- and advantage-weighted regression.

    .. math:: \min\left(e^{r/\tau}, c\right)

    (AWR, arXiv 1910.00177, with a baseline in r; RWR, Peters and Schaal, 2007, without.)

    Args:
        rewards: [B].
        temperature: tau, larger than 0.
        clip: largest weight, None for none.

    Returns:
        [B] weights, larger than 0.

    Example:
        >>> import torch
        >>> exp_weights(torch.tensor([0.0, 100.0]), temperature=1.0, clip=20.0).tolist()
        [1.0, 20.0]
    """
    exponent = rewards / temperature
    highest = math.log(torch.finfo(torch.float32).max) - 1
    return exponent.clamp(max=highest if clip is None else math.log(clip)).exp()


def normalise_rewards(
    rewards: Tensor, group: Tensor, count: int, *, how: Normalise, weight: Tensor
) -> Tensor:
    """Rewards as they are, or their z-scores (population deviation, plus 1e-12); 0 of equal ones.

    Args:
        rewards: [B].
        group: [B] index of each response's group.
        count: number of groups.
        how: ``none``, ``group`` (among the responses of the prompt) or ``round`` (among all).
        weight: [B] how often a response counts in mean and deviation, 0 for not at all.

    Returns:
        [B] of which only entries of weight above 0 mean anything.
    """
    if how == "none":
        return rewards
    owner = group if how == "group" else torch.zeros_like(group)
    counted, share = weight > 0, weight.to(rewards)
    size = segment_sum(share, owner, count)
    size = torch.where(size > 0, size, torch.ones_like(size))
    mean = segment_sum(rewards * share, owner, count) / size
    centred = (rewards - mean[owner]) * counted
    deviation = (segment_sum(centred.square() * share, owner, count) / size).sqrt()
    # equal rewards leave the rounding error of their mean, which 1e-12 would make large
    varies = segment_varies(rewards[counted], owner[counted], count)[owner]
    return centred / (deviation[owner] + 1e-12) * varies


def top_k_mask(scores: Sequence[float], k: int) -> list[bool]:
    """The k best of a group; of equal ones the first.

    Example:
        >>> top_k_mask([1.0, 3.0, 3.0], 1)
        [False, True, False]
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    best = set(order[:k])
    return [i in best for i in range(len(scores))]


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x < 0 without loss of precision; x is cut just below 0."""
    x = x.clamp(max=-1e-6)
    near = x > -math.log(2.0)
    # Each branch sees harmless numbers where the other one is taken, so that no NaN leaks back.
    a = torch.where(near, x, torch.full_like(x, -1.0))
    b = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, (-torch.expm1(a)).log(), torch.log1p(-b.exp()))


def unlikelihood(logps: Tensor) -> Tensor:
    r"""Loss of making a response unlikely: :math:`-\log(1 - \pi(y))`, [N] (arXiv 1908.04319)."""
    return -log1mexp(logps)


def push_down(worse: Tensor, best: Tensor, *, gate: float) -> Tensor:
    r"""Log-probs to be pushed down while they are still worth it.

    .. math:: \log\pi(y_j)\,[\pi(y_j) / \pi(y_{best}) > g]

    The gate keeps the unbounded term from diverging (arXiv 2404.14367, code of the token bandit,
    with g = 0.01).

    Args:
        worse: [N] log-probs of the responses to push down.
        best: [N] log-probs of the best response of the same group.
        gate: g; 0 lets everything through.

    Returns:
        [N] terms to minimise; 0 without gradient below the gate.
    """
    if gate == 0:
        return worse
    passes = worse.detach() - best.detach() > math.log(gate)
    return torch.where(passes, worse, torch.zeros_like(worse))

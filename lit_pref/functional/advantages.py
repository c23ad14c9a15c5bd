"""Advantages from rewards. ``B`` responses with group indices, ``T`` response tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pref.functional.segments import segment_sum, segment_varies, weighted_mean

__all__ = [
    "generalised_advantages",
    "group_zscore",
    "leave_one_out",
    "subtract_group_mean",
    "subtract_mean",
    "whiten",
]


def leave_one_out(rewards: Tensor, group: Tensor, count: int) -> Tensor:
    r"""Reward minus the mean of the other responses to the same prompt.

    .. math:: A_i = r_i - \frac{1}{K-1}\sum_{j\ne i} r_j

    (arXiv 2402.14740, eq. 8.) A response alone in its group has advantage 0.

    Args:
        rewards: [B].
        group: [B] index of each response's group.
        count: number of groups.

    Returns:
        [B] advantages; they sum to 0 in each group.

    Example:
        >>> import torch
        >>> leave_one_out(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), 1).tolist()
        [-2.0, 2.0]
    """
    size = segment_sum(rewards.new_ones(len(rewards)), group, count)[group]
    total = segment_sum(rewards, group, count)[group]
    others = (size - 1).clamp(min=1)
    return (rewards - (total - rewards) / others) * (size > 1)


def subtract_group_mean(rewards: Tensor, group: Tensor, count: int) -> Tensor:
    """Reward minus the mean of the prompt's responses, [B]."""
    size = segment_sum(rewards.new_ones(len(rewards)), group, count).clamp(min=1)
    return rewards - (segment_sum(rewards, group, count) / size)[group]


def group_zscore(
    rewards: Tensor, group: Tensor, count: int, *, eps: float = 1e-12, correction: int = 0
) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation + eps.

    Args:
        rewards: [B].
        group: [B] index of each response's group.
        count: number of groups.
        eps: added to the standard deviation; a group of equal rewards has advantage 0.
        correction: 0 for the standard deviation of the responses themselves, 1 for an estimate
            of the distribution's (n - 1 in its denominator).
    """
    size = segment_sum(rewards.new_ones(len(rewards)), group, count)
    centred = subtract_group_mean(rewards, group, count)
    squares = segment_sum(centred.square(), group, count)
    std = (squares / (size - correction).clamp(min=1)).sqrt()[group]
    # equal rewards leave the rounding error of their mean, which a small eps would make large
    return centred / (std + eps) * segment_varies(rewards, group, count)[group]


def whiten(
    values: Tensor, *, shift: bool = True, eps: float = 1e-8, weight: Tensor | None = None
) -> Tensor:
    """Values over their standard deviation (population) + eps, minus their mean if ``shift``.

    Values that do not differ have no scale: without ``shift`` they stay as they are. ``weight`` of
    the same shape says how often each value counts in both (None: once).
    """
    if not len(values):
        return values
    centred = values - weighted_mean(values, weight)
    std = weighted_mean(centred.square(), weight).sqrt()
    if shift:
        return centred / (std + eps)
    return values / (std + eps) if std > eps else values


def generalised_advantages(
    rewards: Tensor, values: Tensor, lengths: Sequence[int], *, gamma: float, lam: float
) -> Tensor:
    r"""Generalised advantage estimation within each response.

    .. math:: A_t = \delta_t + \gamma\lambda A_{t+1},\quad
        \delta_t = r_t + \gamma V_{t+1} - V_t

    with V = 0 after the last token (arXiv 1506.02438, eq. 16).

    Args:
        rewards: [T] reward of each token.
        values: [T] value of the state before each token.
        lengths: response lengths.
        gamma: discount.
        lam: 0 for one-step, 1 for Monte-Carlo returns.

    Returns:
        [T] advantages; the return of a token is its advantage plus its value.

    Example:
        >>> import torch
        >>> generalised_advantages(
        ...     torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), [2], gamma=1.0, lam=1.0
        ... ).tolist()
        [0.5, 0.75]
    """
    if not len(lengths):
        return rewards
    longest = max(lengths)
    padded_r = rewards.new_zeros(len(lengths), longest)
    padded_v = rewards.new_zeros(len(lengths), longest + 1)
    sizes = torch.tensor(list(lengths))
    inside = torch.arange(longest)[None] < sizes[:, None]
    padded_r[inside] = rewards
    padded_v[:, :-1][inside] = values
    out = torch.zeros_like(padded_r)
    carry = rewards.new_zeros(len(lengths))
    for t in reversed(range(longest)):
        delta = padded_r[:, t] + gamma * padded_v[:, t + 1] - padded_v[:, t]
        carry = torch.where(inside[:, t], delta + gamma * lam * carry, torch.zeros_like(carry))
        out[:, t] = carry
    return out[inside]


def subtract_mean(rewards: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Reward minus the mean over the whole round, [B]; ``weight`` [B] as in ``whiten``."""
    return rewards - weighted_mean(rewards, weight) if len(rewards) else rewards

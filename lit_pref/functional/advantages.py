"""Advantages from rewards. ``P`` groups of ``K`` responses, given as [B] with group indices."""

from __future__ import annotations

from torch import Tensor

from lit_pref.functional.segments import segment_sum

__all__ = ["group_zscore", "leave_one_out", "subtract_mean"]


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


def group_zscore(rewards: Tensor, group: Tensor, count: int, *, eps: float = 1e-12) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation (population) + eps.

    Args:
        rewards: [B].
        group: [B] index of each response's group.
        count: number of groups.
        eps: added to the standard deviation; a group of equal rewards has advantage 0.
    """
    size = segment_sum(rewards.new_ones(len(rewards)), group, count).clamp(min=1)
    mean = (segment_sum(rewards, group, count) / size)[group]
    centred = rewards - mean
    std = (segment_sum(centred.square(), group, count) / size).sqrt()[group]
    return centred / (std + eps)


def subtract_mean(rewards: Tensor) -> Tensor:
    """Reward minus the mean over the whole round, [B]."""
    return rewards - rewards.mean() if len(rewards) else rewards

"""How well a reward orders responses as the true reward does."""

from __future__ import annotations

from collections.abc import Sequence

from lit_pref.types import Group

__all__ = ["pair_accuracy"]


def pair_accuracy(groups: Sequence[Group], truth: Sequence[float]) -> float | None:
    """Share of pairs of responses to the same prompt that are ordered as by the true reward.

    Pairs with equal true rewards do not count; equal rewards are half right.

    Args:
        groups: with rewards.
        truth: true rewards, groups in order, responses in order.

    Returns:
        The share over all pairs, None if there is none.
    """
    right, count, start = 0.0, 0, 0
    for group in groups:
        rewards = [r.reward for r in group.responses]
        true = truth[start : start + len(rewards)]
        start += len(rewards)
        for i in range(len(rewards)):
            for j in range(i + 1, len(rewards)):
                if true[i] != true[j]:
                    gap = (rewards[i] or 0.0) - (rewards[j] or 0.0)
                    right += 0.5 if gap == 0 else float((gap > 0) == (true[i] > true[j]))
                    count += 1
    return right / count if count else None

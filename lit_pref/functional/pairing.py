"""Which responses of a group are compared: pairs from ranks, labels or rewards.

Shapes: ``K`` responses of one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

__all__ = [
    "PAIRINGS",
    "Pairing",
    "compared_pairs",
    "order_scores",
    "pair_indices",
    "unusable_pairs",
]

Pairing = Literal["best_worst", "all", "random", "bradley_terry"]
PAIRINGS: tuple[str, ...] = ("best_worst", "all", "random", "bradley_terry")


def order_scores(
    ranks: Sequence[int | None],
    rewards: Sequence[float | None],
    labels: Sequence[bool | None],
) -> list[float] | None:
    """Numbers that order a group's responses, higher is better.

    Ranks count first (rank 0 is best), then rewards, then labels; whichever all responses have.

    Returns:
        One number per response, or None when nothing orders the group.
    """
    if ranks and all(r is not None for r in ranks):
        return [-float(r) for r in ranks]  # type: ignore[arg-type]
    if rewards and all(r is not None for r in rewards):
        return [float(r) for r in rewards]  # type: ignore[arg-type]
    if labels and all(v is not None for v in labels):
        return [float(bool(v)) for v in labels]
    return None


def pair_indices(
    scores: Sequence[float],
    how: Pairing,
    *,
    gaps: Sequence[float] | None = None,
    min_gap: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[tuple[int, int]]:
    """(winner, loser) positions within a group.

    A tie never makes a pair. ``best_worst`` takes the first best and the first worst; ``all``
    takes every pair that is not a tie; ``random`` takes one of these, uniformly;
    ``bradley_terry`` takes one unordered pair uniformly and draws the winner with probability
    ``sigmoid((r_i - r_j) / temperature)`` (Bradley and Terry, 1952).

    Args:
        scores: [K] numbers, higher is better.
        how: the rule.
        gaps: [K] numbers in which ``min_gap`` and ``temperature`` are measured, where they are
            not the scores: rewards of responses that are ordered by ranks.
        min_gap: pairs whose scores differ by less are left out.
        temperature: of the Bradley-Terry draw.
        generator: for the random rules.

    Example:
        >>> pair_indices([0.1, 0.9, 0.5], "best_worst")
        [(1, 0)]
        >>> pair_indices([0.1, 0.9, 0.9], "all")
        [(1, 0), (2, 0)]
    """
    gaps = scores if gaps is None else gaps
    eligible = [
        (i, j) if scores[i] > scores[j] else (j, i)
        for i in range(len(scores))
        for j in range(i + 1, len(scores))
        if scores[i] != scores[j] and abs(gaps[i] - gaps[j]) >= min_gap
    ]
    if not eligible or how == "all":
        return eligible
    if how == "best_worst":
        best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        worst = min(range(len(scores)), key=lambda i: (scores[i], i))
        return [(best, worst)] if (best, worst) in eligible else []
    pick = int(torch.randint(len(eligible), (1,), generator=generator))
    winner, loser = eligible[pick]
    if how == "bradley_terry":
        gap = (gaps[winner] - gaps[loser]) / temperature
        keep = 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0
        if float(torch.rand(1, generator=generator)) >= keep:
            winner, loser = loser, winner
    return [(winner, loser)]


def unusable_pairs(
    scores: Sequence[float], *, gaps: Sequence[float] | None = None, min_gap: float = 0.0
) -> tuple[int, int]:
    """Pairs of a group that no rule makes: ties, and those that differ by less than ``min_gap``.

    Args:
        scores: see ``pair_indices``.
        gaps: see ``pair_indices``.
        min_gap: see ``pair_indices``.

    Example:
        >>> unusable_pairs([0.1, 0.9, 0.9, 0.8], min_gap=0.5)
        (1, 2)
    """
    gaps = scores if gaps is None else gaps
    ties = close = 0
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            if scores[i] == scores[j]:
                ties += 1
            elif abs(gaps[i] - gaps[j]) < min_gap:
                close += 1
    return ties, close


def compared_pairs(
    comparisons: Sequence[Sequence[float]],
    shares: Sequence[float],
    how: Pairing,
    *,
    min_gap: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[tuple[int, int]]:
    """(winner, loser) positions within a group whose responses were compared by an oracle.

    A comparison is decided when P(first is better) is not 1/2. ``all`` takes every decided
    comparison, also where they form a cycle; ``random`` takes one of them, uniformly;
    ``bradley_terry`` takes one of them uniformly and draws the winner with the oracle's
    probability; ``best_worst`` takes the responses with the largest and the smallest win share,
    whether or not these two were compared.

    Args:
        comparisons: (first, second, P(first is better)).
        shares: [K] win share of each response.
        how: the rule.
        min_gap: comparisons with ``abs(2 P - 1)`` below it are left out (``best_worst``: win
            shares that differ by less).
        generator: for the random rules.

    Example:
        >>> compared_pairs([(0, 1, 0.0), (0, 2, 0.5), (1, 2, 0.75)], [0.25, 0.875, 0.375], "all")
        [(1, 0), (1, 2)]
    """
    if how == "best_worst":
        return pair_indices(shares, how, min_gap=min_gap)
    decided = [
        (int(i), int(j), float(p)) if p > 0.5 else (int(j), int(i), 1.0 - float(p))
        for i, j, p in comparisons
        if p != 0.5 and abs(2 * p - 1) >= min_gap
    ]
    if not decided or how == "all":
        return [(i, j) for i, j, _ in decided]
    winner, loser, p = decided[int(torch.randint(len(decided), (1,), generator=generator))]
    if how == "bradley_terry" and float(torch.rand(1, generator=generator)) >= p:
        winner, loser = loser, winner
    return [(winner, loser)]

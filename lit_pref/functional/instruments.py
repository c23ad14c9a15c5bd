"""What the instruments compute: diversity, length-controlled wins, enumeration, exact divergences.

``N`` comparisons, ``L`` longest response, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from lit_pref.functional.statistics import Z95

__all__ = [
    "correlation",
    "count_responses",
    "distinct_n",
    "enumerate_responses",
    "exact_kl",
    "length_controlled",
    "quantile",
]

_PRIOR = 0.01
"""Precision of the normal prior (mean 0) on the two coefficients of ``length_controlled``."""


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> tuple[int, int]:
    """Distinct and all n-grams of tokens (distinct-n is their ratio, arXiv 1510.03055).

    Args:
        sequences: token ids of some responses.
        n: length of an n-gram, from 1.

    Returns:
        (number of different n-grams, number of n-grams); responses shorter than n have none.

    >>> distinct_n([[1, 2, 1, 2]], 2)
    (2, 3)
    """
    grams = [tuple(ids[i : i + n]) for ids in map(list, sequences) for i in range(len(ids) - n + 1)]
    return len(set(grams)), len(grams)


def quantile(values: Sequence[float], share: float) -> float:
    """Quantile with linear interpolation between the two nearest order statistics.

    Args:
        values: at least one number.
        share: in [0, 1].

    >>> quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary.

    >>> round(correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), 6)
    1.0
    """
    a = torch.tensor(first, dtype=torch.float64)
    b = torch.tensor(second, dtype=torch.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    if len(a) < 2 or not scale > 0:
        return None
    return float((a @ b / scale).clamp(-1, 1))


def length_controlled(
    wins: Sequence[float], differences: Sequence[float], *, z: float = Z95
) -> tuple[float, float, float]:
    r"""Win rate at equal length (after arXiv 2404.04475, section 3).

    .. math:: P(\text{win}) = \sigma(\theta + \phi \tanh(d / s)), \qquad
        \text{rate} = \sigma(\theta)

    ``d`` is the difference of lengths and ``s`` its standard deviation. Ties are half wins.

    Deviation: one coefficient for all prompts instead of one for each, and a weak normal prior
    (standard deviation 10) in place of cross-validated regularisation, so that a side that wins
    every time has a finite estimate.

    Args:
        wins: [N] share in [0, 1] that our response to a prompt wins.
        differences: [N] our length minus theirs, in tokens.
        z: quantile of the normal distribution.

    Returns:
        The rate, and the lower and the upper end of its interval: a normal one after z^2 pseudo
        prompts of equal length, half of them won (Agresti and Coull), so that it keeps its
        coverage near 0 and 1. Of equal lengths it is about Wilson's.
    """
    y = torch.tensor(wins, dtype=torch.float64)
    d = torch.tensor(differences, dtype=torch.float64)
    spread = float(d.std(correction=0)) if len(d) else 0.0
    x = torch.stack([torch.ones_like(d), torch.tanh(d / spread) if spread else d * 0], 1)
    rate = float(_logistic(x, y, torch.ones_like(y))[0][0].sigmoid())
    beta, covariance = _logistic(
        torch.cat([x, x.new_tensor([[1.0, 0.0]])]),
        torch.cat([y, y.new_tensor([0.5])]),
        torch.cat([torch.ones_like(y), y.new_tensor([z * z])]),
    )
    middle = float(beta[0].sigmoid())
    half = z * middle * (1 - middle) * math.sqrt(float(covariance[0, 0]))
    return rate, max(0.0, middle - half), min(1.0, middle + half)


def _logistic(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of a logistic regression with the weak prior, and their covariance."""
    prior = torch.full((x.shape[1],), _PRIOR, dtype=torch.float64)

    def information(beta: Tensor) -> Tensor:
        p = (x @ beta).sigmoid()
        return (x * (weight * p * (1 - p))[:, None]).T @ x + torch.diag(prior)

    def objective(beta: Tensor) -> float:
        logits = x @ beta
        likelihood = weight * (y * logits - torch.nn.functional.softplus(logits))
        return float(likelihood.sum() - (prior * beta * beta).sum() / 2)

    beta = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(100):  # Newton's method with halved steps: the objective is concave
        gradient = x.T @ (weight * (y - (x @ beta).sigmoid())) - prior * beta
        step = torch.linalg.solve(information(beta), gradient)
        while objective(beta + step) < objective(beta) - 1e-9:
            step = step / 2
        beta = beta + step
        if float(step.abs().max()) < 1e-9:
            break
    return beta, torch.linalg.inv(information(beta))


# --------------------------------------------------------------------------- enumeration


def count_responses(vocab_size: int, length: int, end_ids: Collection[int] = ()) -> int:
    """How many responses there are: those that end before ``length`` tokens, and those that long.

    >>> count_responses(3, 2)
    9
    >>> count_responses(3, 2, [0])
    7
    """
    ends = len(set(end_ids))
    going_on = vocab_size - ends
    return sum(going_on**n * ends for n in range(length)) + going_on**length


def enumerate_responses(
    vocab_size: int, length: int, end_ids: Collection[int] = ()
) -> Iterator[list[int]]:
    """Every response there is, in lexicographic order; see ``count_responses``.

    >>> list(enumerate_responses(2, 2, [0]))
    [[0], [1, 0], [1, 1]]
    """
    ends = set(end_ids)

    def extend(prefix: list[int]) -> Iterator[list[int]]:
        for token in range(vocab_size):
            ids = [*prefix, token]
            if token in ends or len(ids) == length:
                yield ids
            else:
                yield from extend(ids)

    return extend([])


def exact_kl(logps: Tensor, others: Tensor) -> Tensor:
    r"""KL divergence of two distributions over the same, complete list of responses.

    .. math:: \mathrm{KL}(p \| q) = \sum_y p(y) \log \frac{p(y)}{q(y)}

    Args:
        logps: [..., N] log-probs of all responses under p, in nats.
        others: [..., N] under q.

    Returns:
        [...] nats.
    """
    probs = logps.exp()
    return torch.where(probs > 0, probs * (logps - others), torch.zeros_like(probs)).sum(-1)

"""How far the policy is from what sampled the data. ``B`` responses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chi_square", "effective_share", "importance_weights"]

_LARGEST = 300.0
"""Log of the largest weight: its square is still a float64, or nearly so."""


def importance_weights(log_ratio: Tensor) -> Tensor:
    r"""Weights that turn means over the data into means under the policy.

    .. math:: w_i = \pi(y_i) / b(y_i)

    Args:
        log_ratio: [B] log-prob under the policy minus that under the behaviour, in nats; cut at
            300.

    Returns:
        [B] float64 (float32 where the device has no other).
    """
    dtype = torch.float32 if log_ratio.device.type == "mps" else torch.float64
    largest = _LARGEST if dtype is torch.float64 else 40.0
    return log_ratio.to(dtype).clamp(max=largest).exp()


def effective_share(mean: float, mean_square: float) -> float:
    r"""Effective sample size of the weights, as a share of the samples (Kong, 1992).

    .. math:: \mathrm{ESS}/n = (\textstyle\sum w)^2 / (n \sum w^2)

    Args:
        mean: of the weights.
        mean_square: of their squares.

    Returns:
        A number in [1/n, 1]; 1 when all weights are equal.

    Example:
        >>> effective_share(1.0, 2.0)  # weights 0 and 2
        0.5
    """
    return mean * mean / mean_square if mean_square > 0 else 0.0


def chi_square(mean: float, mean_square: float) -> float:
    r"""Estimate of the chi-square divergence of the policy from the behaviour.

    .. math:: \chi^2(\pi\,\|\,b) = E_b[(w - 1)^2]

    Args:
        mean: of the weights.
        mean_square: of their squares.

    Returns:
        A number from 0; the variance of the weights where their mean is 1.

    Example:
        >>> chi_square(1.0, 2.0)
        1.0
    """
    return mean_square - 2 * mean + 1

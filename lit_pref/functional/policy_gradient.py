"""Policy-gradient losses on flat tokens. ``T`` response tokens, ``B`` responses."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_pref.functional.segments import segment_sum

__all__ = [
    "adaptive_kl",
    "capped_policy_loss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "k3_kl",
    "probability_ratio",
    "token_weights",
]


def probability_ratio(
    logps: Tensor, old_logps: Tensor, owner: Tensor, lengths: Tensor, *, level: str
) -> Tensor:
    r"""Probability under the policy over that of the policy at the round's start.

    ``token``: :math:`\pi(y_t)/\pi_{old}(y_t)`. ``sequence``: the geometric mean over the response,
    :math:`(\pi(y)/\pi_{old}(y))^{1/|y|}`, the same for all its tokens (arXiv 2507.18071, eq. 7).
    ``response``: the product over the response, :math:`\pi(y)/\pi_{old}(y)`.

    Args:
        logps: [T] log-probs under the policy.
        old_logps: [T] at the start of the round.
        owner: [T] response of each token.
        lengths: [B] response lengths.
        level: ``token``, ``sequence`` or ``response``.

    Returns:
        [T] ratios.
    """
    log_ratio = logps - old_logps
    if level == "token":
        return log_ratio.exp()
    total = segment_sum(log_ratio, owner, len(lengths))
    if level == "sequence":
        total = total / lengths.to(total).clamp(min=1)
    return total.exp()[owner]


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    r"""PPO's clipped surrogate.

    .. math:: -\min(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon_{low}, 1+\epsilon_{high}) A)

    (arXiv 1707.06347, eq. 7; two bounds: DAPO, arXiv 2503.14476, eq. 10.)

    Args:
        ratio: [T] probability ratios.
        advantages: [T].
        low: how far below 1 a ratio counts.
        high: how far above 1 a ratio counts.

    Example:
        >>> clipped_policy_loss(torch.tensor([2.0]), torch.tensor([1.0]), low=0.2, high=0.2)
        tensor([-1.2000])
    """
    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def capped_policy_loss(
    logps: Tensor, ratio: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    r"""CISPO: the ratio weighs the gradient, clipped and without a gradient of its own.

    .. math:: -\mathrm{sg}[\mathrm{clip}(\rho, 1-\epsilon_{low}, 1+\epsilon_{high})]\,A\log\pi

    (arXiv 2506.13585, eq. 4 and 5.) No token loses its gradient.

    Args:
        logps: [T] log-probs under the policy.
        ratio: [T] probability ratios.
        advantages: [T].
        low: 1 or more switches the lower bound off.
        high: how far above 1 a ratio counts.
    """
    weight = ratio.detach().clamp(max(1 - low, 0.0), 1 + high)
    return -weight * advantages * logps


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    r"""Estimate of KL(policy || reference) per token, never negative.

    .. math:: \frac{\pi_{ref}}{\pi} - \log\frac{\pi_{ref}}{\pi} - 1

    (Schulman 2020; arXiv 2402.03300, eq. 4.)

    Example:
        >>> k3_kl(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.])
    """
    log_ratio = ref_logps - logps
    return log_ratio.exp() - log_ratio - 1


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> Tensor:
    r"""Squared error of values, which may move by at most ``clip`` from their old ones.

    .. math:: \tfrac12\max\{(V-R)^2, (V_{clip}-R)^2\},\quad
        V_{clip} = V_{old} + \mathrm{clip}(V - V_{old}, -c, c)

    (The implementation of arXiv 1707.06347; arXiv 2005.12729 describes it.)

    Args:
        values: [T] values now.
        old_values: [T] values when the round was annotated.
        returns: [T] targets.
        clip: c, None for no clipping.
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * error


def adaptive_kl(coef: Tensor, kl: Tensor, *, target: float, horizon: float, count: float) -> Tensor:
    r"""The next KL coefficient of a proportional controller.

    .. math:: \beta \leftarrow \beta\,(1 + \mathrm{clip}(KL/target - 1, -0.2, 0.2)\, n / horizon)

    (arXiv 1909.08593, section 2.2.)

    Args:
        coef: scalar, the coefficient so far.
        kl: scalar, mean KL of the round's responses in nats.
        target: KL to hold.
        horizon: responses over which the coefficient may change by about 20 %.
        count: n, responses in the round, each as often as its weight says.
    """
    error = (kl / target - 1).clamp(-0.2, 0.2)
    return coef * (1 + error * count / horizon)


def token_weights(
    owner: Tensor, lengths: Tensor, weight: Tensor, *, denominator: str, constant: int | None
) -> Tensor:
    r"""What each token's loss is multiplied by, before the division by a count of the batch.

    ``responses``: 1, a sum over tokens. ``tokens``: 1. ``response_mean``: 1/|y|, a mean over each
    response (arXiv 2402.03300, eq. 3). ``constant``: 1/L for a fixed L (arXiv 2503.20783).

    Args:
        owner: [T] response of each token.
        lengths: [B] response lengths.
        weight: [B] weight of each response.
        denominator: the rule.
        constant: L of ``constant``.

    Returns:
        [T].
    """
    out = weight[owner]
    if denominator == "response_mean":
        out = out / lengths.to(out).clamp(min=1)[owner]
    elif denominator == "constant":
        assert constant is not None
        out = out / constant
    return out

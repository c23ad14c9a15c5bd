"""Pairwise preference losses on differences of log-ratios, as pure functions.

``N`` pairs, ``B`` responses, ``T`` response tokens. A log-ratio is ``logp - ref_logp`` of a
response in nats; ``logits`` is the chosen response's minus the rejected one's.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.functional.segments import expand_segments, segment_sum

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "discopop_loss",
    "divergence_score",
    "dpo_loss",
    "ipo_loss",
    "length_desensitised_sum",
    "robust_dpo_loss",
    "slic_loss",
    "wpo_log_weight",
]

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
DIVERGENCES: tuple[str, ...] = ("reverse_kl", "forward_kl", "js", "alpha")


def dpo_loss(logits: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    r"""Direct preference optimisation.

    .. math:: -(1-\epsilon)\log\sigma(\beta\Delta) - \epsilon\log\sigma(-\beta\Delta)

    with :math:`\Delta` the difference of the log-ratios of chosen and rejected response,
    (arXiv 2305.18290, eq. 7; the smoothed form is cDPO, Mitchell 2023).

    Args:
        logits: [N] difference of log-ratios in nats,
            ``(logp_w - ref_logp_w) - (logp_l - ref_logp_l)``.
        beta: strength of the pull towards the reference, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        [N] losses.

    Example:
        >>> import torch
        >>> dpo_loss(torch.zeros(1), beta=0.1).item()  # log 2
        0.6931471824645996
    """
    return -F.logsigmoid(beta * logits) * (1 - label_smoothing) - (
        F.logsigmoid(-beta * logits) * label_smoothing
    )


def robust_dpo_loss(logits: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    r"""DPO whose expectation over flipped labels is the loss on right labels.

    .. math:: \frac{-(1-\epsilon)\log\sigma(\beta\Delta) + \epsilon\log\sigma(-\beta\Delta)}
              {1-2\epsilon}

    (arXiv 2403.00409, the rDPO loss.) It is not bounded below.

    Args:
        logits: [N] difference of log-ratios.
        beta: as in DPO.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        [N] losses.
    """
    right, flipped = -F.logsigmoid(beta * logits), -F.logsigmoid(-beta * logits)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(logits: Tensor, *, margin: float) -> Tensor:
    r"""Identity preference optimisation: regress the difference of log-ratios on a margin.

    .. math:: \left(\Delta - \frac{1}{2\tau}\right)^2

    (arXiv 2310.12036, eq. 17.) ``margin`` is :math:`1/(2\tau)`.

    Args:
        logits: [N] difference of log-ratios.
        margin: where the difference should end, larger than 0.

    Returns:
        [N] losses.
    """
    return (logits - margin).square()


def slic_loss(logits: Tensor, *, beta: float, delta: float) -> Tensor:
    r"""Hinge loss of sequence likelihood calibration.

    .. math:: \max(0, \delta - \beta\Delta)

    (arXiv 2305.10425, the calibration loss, on log-probs; on log-ratios it is the hinge of RSO,
    arXiv 2309.06657.)

    Args:
        logits: [N] difference of log-ratios, or of log-probs.
        beta: scale of the difference.
        delta: margin beyond which a pair has no gradient.

    Returns:
        [N] losses.
    """
    return F.relu(delta - beta * logits)


def discopop_loss(logits: Tensor, *, beta: float, temperature: float) -> Tensor:
    r"""The log-ratio modulated loss that a language model discovered.

    .. math:: (1 - m)\,(-\log\sigma(\beta\Delta)) + m\,e^{-\beta\Delta},
              \quad m = \sigma(\beta\Delta / \tau)

    (arXiv 2406.08414, eq. 5.) The gradient goes through the modulation too. It is not convex: the
    slope at 0 is :math:`-3/4 + (1 - \log 2) / (4\tau)`, so with the published temperature of 0.05
    (any below 0.102) a pair that starts at 0 is first pushed the wrong way, into a local minimum.

    Args:
        logits: [N] difference of log-ratios.
        beta: as in DPO.
        temperature: of the modulation; 0.05 as published.

    Returns:
        [N] losses.
    """
    scaled = beta * logits
    # Where m is 0 in floating point the exponential may overflow; its product is 0 in the limit.
    log_modulation = F.logsigmoid(scaled / temperature)
    exponential = (log_modulation - scaled).exp()
    return -F.logsigmoid(scaled) * torch.sigmoid(-scaled / temperature) + exponential


# --------------------------------------------------------------------------- parts of DPO


def divergence_score(log_ratio: Tensor, divergence: Divergence, *, alpha: float = 0.5) -> Tensor:
    r"""What takes the place of the log-ratio when another f-divergence holds the policy.

    ========== ======================================== ==========================
    divergence :math:`f'(u)` up to a constant           :math:`u = \pi / \pi_{ref}`
    ========== ======================================== ==========================
    reverse_kl :math:`\log u`                           DPO as published
    forward_kl :math:`-1/u`
    js         :math:`\log(2u / (1 + u))`
    alpha      :math:`(1 - u^{-\alpha}) / \alpha`       0: reverse KL; 1: forward KL
    ========== ======================================== ==========================

    (arXiv 2309.16240, table 1.) Deviation: exponents are cut where the float type overflows.

    Args:
        log_ratio: [N] log of u in nats.
        divergence: a name of ``DIVERGENCES``.
        alpha: of the alpha divergence, in (0, 1). TRL's coefficient is 1 - alpha.

    Returns:
        [N] scores; differences of them are DPO's logits.
    """
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "js":
        return math.log(2.0) + F.logsigmoid(log_ratio)
    limit = math.log(torch.finfo(log_ratio.dtype).max) / 2
    if divergence == "forward_kl":
        return -(-log_ratio).clamp(max=limit).exp()
    return -torch.expm1((-alpha * log_ratio).clamp(max=limit)) / alpha


def length_desensitised_sum(
    token_values: Tensor,
    lengths: Tensor,
    index: Tensor,
    public: Tensor,
    *,
    alpha: float,
    total: int | None = None,
) -> Tensor:
    r"""Sum over a response in which tokens beyond the pair's shorter length count alpha.

    .. math:: \sum_{t \le l_p} v_t + \alpha \sum_{t > l_p} v_t

    (LD-DPO, arXiv 2409.06411, on log-probs.) 1 is the plain sum.

    Args:
        token_values: [T] of all responses.
        lengths: [B] length of every response in tokens.
        index: [N] which response.
        public: [N] length of the shorter response of each pair.
        alpha: weight of the tokens beyond it, in [0, 1].
        total: tokens of these responses; None asks the device for it, and waits.

    Returns:
        [N] sums.
    """
    element, owner, position = expand_segments(lengths, index, total=total)
    weight = torch.where(position < public[owner], 1.0, alpha).to(token_values)
    return segment_sum(token_values[element] * weight, owner, len(index))


def wpo_log_weight(token_logps: Tensor, sum_squares: Tensor) -> Tensor:
    r"""How likely a token is under the policy, against what the policy itself would sample.

    .. math:: \log\pi(y_t) - \log\sum_v \pi(v)^2

    The weight of a response is the exponential of the mean over its tokens (WPO,
    arXiv 2406.11827, eq. 2 with sampled alignment). No gradient flows through it.

    Args:
        token_logps: [T].
        sum_squares: [T] sums of squared probabilities.

    Returns:
        [T], without gradient.
    """
    return token_logps.detach() - sum_squares.detach().clamp(min=1e-30).log()

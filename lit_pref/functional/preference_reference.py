"""Pairwise losses that look at both log-ratios, not only at their difference. ``N`` pairs.

``chosen`` and ``rejected`` are log-ratios ``logp - ref_logp`` in nats.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.functional.segments import weighted_mean

__all__ = [
    "aot_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "bco_shift",
    "dpop_loss",
    "exo_loss",
    "nca_loss",
    "sppo_loss",
]


def dpop_loss(chosen: Tensor, rejected: Tensor, *, beta: float, penalty: float) -> Tensor:
    r"""DPO with a penalty for making the chosen response less likely than the reference does.

    .. math:: -\log\sigma\left(\beta\left[h_w - h_l - \lambda\max(0, -h_w)\right]\right)

    (DPO-Positive, arXiv 2402.13228, the DPOP loss.)

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: as in DPO.
        penalty: lambda; 0 is DPO.

    Returns:
        [N] losses.
    """
    return -F.logsigmoid(beta * (chosen - rejected - penalty * F.relu(-chosen)))


def exo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    r"""Reverse KL from the policy's preference to the smoothed label.

    .. math:: p\,(\log p - \log(1-\epsilon)) + (1-p)\,(\log(1-p) - \log\epsilon),
              \quad p = \sigma(\beta(h_w - h_l))

    (EXO, arXiv 2402.00856, eq. 16, two responses.) Its least value 0 is at p = 1 - epsilon.

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: scale of the log-ratios.
        label_smoothing: epsilon, larger than 0 (the divergence is infinite at 0).

    Returns:
        [N] losses.
    """
    logits = beta * (chosen - rejected)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    return log_p.exp() * (log_p - math.log1p(-label_smoothing)) + (
        log_q.exp() * (log_q - math.log(label_smoothing))
    )


def nca_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    r"""Noise contrastive alignment for two responses.

    .. math:: -\log\sigma(\beta h_w) - \tfrac12\log\sigma(-\beta h_w)
              - \tfrac12\log\sigma(-\beta h_l)

    (arXiv 2402.05369, the NCA loss on pairs.) It looks at each response alone, so it keeps the
    likelihood of the chosen one from falling.

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: scale of the log-ratios.

    Returns:
        [N] losses.
    """
    a, b = beta * chosen, beta * rejected
    return -F.logsigmoid(a) - 0.5 * F.logsigmoid(-a) - 0.5 * F.logsigmoid(-b)


def bco_shift(
    chosen: Tensor, rejected: Tensor, *, beta: float, weight: Tensor | None = None
) -> Tensor:
    r"""Where the classifier of BCO cuts: halfway between the mean rewards, a constant.

    .. math:: \delta = \tfrac12\left(E[\beta h_w] + E[\beta h_l]\right)

    (arXiv 2404.04656, the reward shift.)

    Args:
        chosen: [N] log-ratios of the chosen responses of the whole batch.
        rejected: [M] log-ratios of the rejected responses of the whole batch.
        beta: scale of the log-ratios.
        weight: [N] how often each pair counts, for M = N (None: once).

    Returns:
        A scalar without gradient; an empty side does not count.
    """
    sides = [
        beta * weighted_mean(side, weight)
        for side in (chosen.detach(), rejected.detach())
        if len(side)
    ]
    return torch.stack(sides).mean() if sides else chosen.new_zeros(())


def bco_loss(chosen: Tensor, rejected: Tensor, *, beta: float, shift: Tensor) -> Tensor:
    r"""Binary classifier optimisation: chosen above the shift, rejected below it.

    .. math:: -\log\sigma(\beta h_w - \delta) - \log\sigma(-(\beta h_l - \delta))

    (arXiv 2404.04656, the BCO loss.)

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: scale of the log-ratios.
        shift: scalar, see ``bco_shift``.

    Returns:
        [N] losses.
    """
    return -F.logsigmoid(beta * chosen - shift) - F.logsigmoid(shift - beta * rejected)


def apo_zero_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    r"""Anchored preference optimisation: chosen up, rejected down.

    .. math:: 1 - \sigma(\beta h_w) + \sigma(\beta h_l)

    (arXiv 2408.06266, eq. 7, plus 1.) For chosen responses better than the policy's own.

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: scale of the log-ratios.

    Returns:
        [N] losses.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    r"""Anchored preference optimisation: both down, the rejected more.

    .. math:: 1 + \sigma(\beta h_w) - \sigma(\beta(h_w - h_l))

    (arXiv 2408.06266, eq. 8, plus 1.) For chosen responses worse than the policy's own.

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        beta: scale of the log-ratios.

    Returns:
        [N] losses.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def sppo_loss(chosen: Tensor, rejected: Tensor, *, eta: float) -> Tensor:
    r"""Self-play preference optimisation with hard labels.

    .. math:: \left(h_w - \tfrac{\eta}{2}\right)^2 + \left(h_l + \tfrac{\eta}{2}\right)^2

    (arXiv 2405.00675, algorithm 1, with win probabilities 1 and 0.)

    Args:
        chosen: [N] log-ratios of the chosen responses.
        rejected: [N] log-ratios of the rejected responses.
        eta: step size of the multiplicative update. TRL's beta is 1 / eta.

    Returns:
        [N] losses.
    """
    return (chosen - eta / 2).square() + (rejected + eta / 2).square()


def aot_loss(better: Tensor, worse: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    r"""Alignment by optimal transport: sort both samples, then compare rank by rank.

    .. math:: -(1-\epsilon)\log\sigma(\beta(u_{(i)} - v_{(i)}))
              - \epsilon\log\sigma(-\beta(u_{(i)} - v_{(i)}))

    with :math:`u_{(i)}, v_{(i)}` the i-th smallest values (arXiv 2406.05882, logistic loss).

    Args:
        better: [N] what should dominate: the policy's margins (paired form) or the log-ratios of
            the chosen responses (unpaired form).
        worse: [N] what it is compared to: the reference's margins, or the log-ratios of the
            rejected responses.
        beta: scale.
        label_smoothing: as in DPO.

    Returns:
        [N] losses by rank.
    """
    logits = beta * (better.sort().values - worse.sort().values)
    return -F.logsigmoid(logits) * (1 - label_smoothing) - F.logsigmoid(-logits) * label_smoothing

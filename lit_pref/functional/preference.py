"""Pairwise preference losses as pure functions. ``N`` pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["dpo_loss"]


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

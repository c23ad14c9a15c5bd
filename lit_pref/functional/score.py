"""Losses of reward models, as pure functions. ``N`` pairs."""

from __future__ import annotations

from torch import Tensor

from lit_pref.functional.reference_free import preference_loss

__all__ = ["reward_model_loss"]


def reward_model_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    r"""Bradley-Terry likelihood of preferences, with its usual extensions.

    .. math:: -(1-\epsilon)\log\sigma(\Delta) - \epsilon\log\sigma(-\Delta) + c\,(s_w + s_l)^2,
              \quad \Delta = s_w - s_l - m

    (arXiv 2203.02155, eq. 1; the margin m: arXiv 2307.09288, eq. 2; the smoothing: the reward
    models of arXiv 2404.14367; the centring: arXiv 2312.09244.)

    Args:
        chosen: [N] scores of the chosen responses.
        rejected: [N] scores of the rejected ones.
        margin: [N] by how much the chosen one should be ahead.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        centering: c; scores are free up to a constant, and this takes their mean to 0.

    Returns:
        [N] losses.

    Example:
        >>> import torch
        >>> reward_model_loss(torch.ones(1), torch.ones(1)).item()  # log 2
        0.6931471824645996
    """
    losses = preference_loss(chosen - rejected - margin, label_smoothing=label_smoothing)
    return losses + centering * (chosen + rejected).square() if centering else losses

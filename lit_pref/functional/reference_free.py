"""Pairwise preference losses that need no reference model, as pure functions.

``N`` pairs. ``chosen`` and ``rejected`` are log-probs of responses in nats: sums over their tokens,
or means where the argument's name says so.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.functional.supervised import log1mexp, unlikelihood

__all__ = [
    "alphapo_reward",
    "cpo_loss",
    "log_odds",
    "odds_ratio_loss",
    "preference_loss",
    "simpo_loss",
    "unlikelihood_loss",
]


def preference_loss(logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""Logistic loss of a preference, with labels that may be wrong.

    .. math:: -(1-\epsilon)\log\sigma(z) - \epsilon\log\sigma(-z)

    Args:
        logits: [N] scores of the chosen minus those of the rejected responses.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        [N] losses.

    Example:
        >>> import torch
        >>> preference_loss(torch.zeros(1)).item()  # log 2
        0.6931471824645996
    """
    right, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return (1 - label_smoothing) * right + label_smoothing * flipped


def simpo_loss(
    mean_chosen: Tensor,
    mean_rejected: Tensor,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Simple preference optimisation: log-probs per token, with a target margin.

    .. math:: -\log\sigma\left(\frac{\beta}{|y_w|}\log\pi(y_w) - \frac{\beta}{|y_l|}\log\pi(y_l)
              - \gamma\right)

    (arXiv 2405.14734, eq. 6.)

    Args:
        mean_chosen: [N] log-probs per token of the chosen responses.
        mean_rejected: [N] of the rejected ones.
        beta: scale of the log-probs.
        gamma: target margin between the two rewards. TRL's ``simpo_gamma`` is this number; the
            authors' ``gamma_beta_ratio`` is gamma / beta.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        [N] losses.
    """
    logits = beta * (mean_chosen - mean_rejected) - gamma
    return preference_loss(logits, label_smoothing=label_smoothing)


def alphapo_reward(mean_logps: Tensor, *, alpha: float) -> Tensor:
    r"""AlphaPO's reward of a response, whose shape ``alpha`` changes.

    .. math:: \frac{1 - \bar\pi(y)^{-\alpha}}{\alpha},
              \quad \bar\pi(y) = \exp\left(\tfrac{1}{|y|}\log\pi(y)\right)

    (arXiv 2501.03884, the alpha reward.) At alpha 0 it is the log-prob per token, SimPO's.

    Args:
        mean_logps: [N] log-probs per token.
        alpha: shape; larger than 0 bends the reward down where the response is unlikely.

    Returns:
        [N] rewards, without beta.
    """
    if alpha == 0:
        return mean_logps
    # Deviation: exponents are cut where the float type overflows.
    limit = math.log(torch.finfo(mean_logps.dtype).max) / 2
    return -torch.expm1((-alpha * mean_logps).clamp(max=limit)) / alpha


def cpo_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    r"""The preference part of contrastive preference optimisation: DPO with a uniform reference.

    .. math:: -\log\sigma\left(\beta\log\pi(y_w) - \beta\log\pi(y_l)\right)

    (arXiv 2401.08417, the loss called L_prefer; its other part is the negative log-likelihood of
    the chosen response.)

    Args:
        chosen: [N] log-probs of the chosen responses.
        rejected: [N] of the rejected ones.
        beta: scale of the log-probs.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        [N] losses.
    """
    return preference_loss(beta * (chosen - rejected), label_smoothing=label_smoothing)


def log_odds(logps: Tensor) -> Tensor:
    r"""Log of the odds :math:`p / (1 - p)`, [N], of log-probs below 0 (arXiv 2403.07691, eq. 4).

    Example:
        >>> import torch
        >>> round(log_odds(torch.tensor([0.5]).log()).item(), 6)
        0.0
    """
    return logps - log1mexp(logps)


def odds_ratio_loss(mean_chosen: Tensor, mean_rejected: Tensor) -> Tensor:
    r"""The odds-ratio part of ORPO.

    .. math:: -\log\sigma\left(\log\frac{odds(y_w)}{odds(y_l)}\right),
              \quad odds(y) = \frac{\bar\pi(y)}{1 - \bar\pi(y)}

    (arXiv 2403.07691, eq. 7, with the log-probs per token of eq. 3.)

    Args:
        mean_chosen: [N] log-probs per token of the chosen responses.
        mean_rejected: [N] of the rejected ones.

    Returns:
        [N] losses.
    """
    return -F.logsigmoid(log_odds(mean_chosen) - log_odds(mean_rejected))


def unlikelihood_loss(chosen: Tensor, rejected: Tensor, *, alpha: float) -> Tensor:
    r"""Likelihood of the chosen response, unlikelihood of the rejected one.

    .. math:: -\log\pi(y_w) - \alpha\log(1 - \pi(y_l))

    (arXiv 1908.04319, on responses instead of tokens; arXiv 2404.14367 uses it so.) It is bounded
    below. The pressure on the rejected response is its odds times alpha, next to nothing once its
    probability is small, as that of any long response is.

    Args:
        chosen: [N] log-probs of the chosen responses.
        rejected: [N] of the rejected ones, below 0.
        alpha: weight of the second term.

    Returns:
        [N] losses.
    """
    return -chosen + alpha * unlikelihood(rejected)

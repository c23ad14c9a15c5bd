r"""Lemma 6.2 of arXiv 2404.14367 in exact form: what the negative half of a pairwise update does.

The update of tabular softmax logits is :math:`z + \eta (c_1 g_w - c_2 g_l)` with
:math:`g_y = \nabla_z \log \pi(y) = e_y - \pi`; :math:`c_2 = 0` is (weighted) maximum likelihood.
With :math:`S = \sum_k \pi_k^2` the effects of :math:`c_2` are, to first order in :math:`\eta`,

========================= ==================================================
on                        effect
========================= ==================================================
the margin                :math:`\eta c_2 (1 + \pi_w - \pi_l)`, always above 0
:math:`\log \pi_w`        :math:`\eta c_2 (\pi_w + \pi_l - S)`, either sign
:math:`\log \pi_l`        :math:`-\eta c_2 (1 - 2 \pi_l + S)`, always below 0
========================= ==================================================

So a negative gradient always widens the margin; it *lowers* the winner where a third response
holds most of the mass (S above :math:`\pi_w + \pi_l`): then the mass goes to other responses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PairEffects",
    "pair_grad_product",
    "pair_step",
    "negative_effects",
    "winner_falls",
]


class PairEffects(NamedTuple):
    """First-order effects per unit of ``eta * c2``; each [...] nats.

    Attributes:
        margin: on log pi(y_w) - log pi(y_l).
        chosen: on log pi(y_w).
        rejected: on log pi(y_l).
    """

    margin: Tensor
    chosen: Tensor
    rejected: Tensor


def pair_grad_product(policy: Tensor, *, chosen: int, rejected: int) -> Tensor:
    r""":math:`g_w \cdot g_l`: :math:`S - \pi_w - \pi_l`, or :math:`1 - 2\pi_w + S` for w = l.

    Args:
        policy: [..., V] probabilities.
        chosen: category of the winner.
        rejected: category of the loser.

    Returns:
        [...] inner products of the two gradients at the logits.
    """
    squares = policy.square().sum(-1)
    return float(chosen == rejected) + squares - policy[..., chosen] - policy[..., rejected]


def negative_effects(policy: Tensor, *, chosen: int, rejected: int) -> PairEffects:
    """What the term ``-c2 * grad log pi(y_l)`` adds, to first order (arXiv 2404.14367, lemma 6.2).

    Args:
        policy: [..., V] probabilities.
        chosen: category of the winner.
        rejected: another category, the loser's.

    Returns:
        Effects per unit of ``eta * c2``.
    """
    if chosen == rejected:
        raise ValueError(f"chosen and rejected must differ, got {chosen} for both")
    on_chosen = -pair_grad_product(policy, chosen=chosen, rejected=rejected)
    on_rejected = -pair_grad_product(policy, chosen=rejected, rejected=rejected)
    return PairEffects(on_chosen - on_rejected, on_chosen, on_rejected)


def winner_falls(policy: Tensor, *, chosen: int, rejected: int) -> Tensor:
    r"""Where the negative term lowers the winner: :math:`S > \pi_w + \pi_l`.

    Args:
        policy: [..., V] probabilities.
        chosen: category of the winner.
        rejected: category of the loser.

    Returns:
        [...] booleans.
    """
    squares = policy.square().sum(-1)
    return squares > policy[..., chosen] + policy[..., rejected]


def pair_step(
    policy: Tensor, *, chosen: int, rejected: int, c1: float, c2: float, eta: float
) -> Tensor:
    """Log-probs after one step of the pairwise update (arXiv 2404.14367, lemma 6.2), exactly.

    Args:
        policy: [..., V] probabilities.
        chosen: category of the winner.
        rejected: category of the loser.
        c1: weight of the positive term.
        c2: weight of the negative term.
        eta: step size on the logits.

    Returns:
        [..., V] log-probs.
    """
    logits = policy.log() + eta * (c2 - c1) * policy
    push = torch.zeros(policy.shape[-1], dtype=policy.dtype, device=policy.device)
    push[chosen] += eta * c1
    push[rejected] -= eta * c2
    return (logits + push).log_softmax(-1)

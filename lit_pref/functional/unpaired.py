"""Losses of single responses that are desirable or not, as pure functions. ``B`` responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bco_unpaired_loss", "class_shift", "group_labels", "kto_loss"]


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky optimisation: gains and losses against a reference point.

    .. math:: \lambda_D\left(1 - \sigma(\beta(h - z_0))\right) \text{ if desirable, else }
              \lambda_U\left(1 - \sigma(\beta(z_0 - h))\right)

    with h the log-ratio of the response to the reference (arXiv 2402.01306, eq. 8, where the
    constant that makes it a loss is lambda of the response's label).

    Args:
        log_ratio: [B] log-prob over the reference's, in nats.
        desirable: [B] booleans.
        kl: scalar :math:`z_0`, a constant from 0 in nats; see ``objectives.kto``.
        beta: risk aversion, larger than 0.
        desirable_weight: :math:`\lambda_D`.
        undesirable_weight: :math:`\lambda_U`.

    Returns:
        [B] losses.

    Example:
        >>> import torch
        >>> kto_loss(torch.zeros(1), torch.tensor([True]), kl=torch.tensor(0.0), beta=0.1).item()
        0.5
    """
    gain = beta * (log_ratio - kl)
    return torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-gain),
        undesirable_weight * torch.sigmoid(gain),
    )


def class_shift(rewards: Tensor, desirable: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""BCO's reward shift: halfway between the mean rewards of the two classes, a constant.

    .. math:: \delta = \tfrac12\left(E_{D^+}[r] + E_{D^-}[r]\right)

    (arXiv 2404.04656, the reward shift.)

    Args:
        rewards: [B] implicit rewards of the whole batch.
        desirable: [B] booleans.
        weight: [B] how often each response counts (None: once).

    Returns:
        A scalar without gradient; an empty class does not count.
    """
    fixed = rewards.detach()
    often = torch.ones_like(fixed) if weight is None else weight.to(fixed)
    masks = torch.stack([desirable, ~desirable])
    # without asking how many there are, which a device would have to answer
    counts = torch.where(masks, often, 0.0).sum(1)
    sums = torch.where(masks, fixed * often, 0.0).sum(1)
    means = sums / torch.where(counts > 0, counts, 1.0)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def bco_unpaired_loss(rewards: Tensor, desirable: Tensor, *, shift: Tensor) -> Tensor:
    r"""Binary classifier optimisation: cross-entropy of the label, with the reward as logit.

    .. math:: -\log\sigma(r - \delta) \text{ if desirable, else } -\log\sigma(\delta - r)

    (arXiv 2404.04656, the BCO loss, before the mean over each class.)

    Args:
        rewards: [B] implicit rewards, beta times the log-ratio.
        desirable: [B] booleans.
        shift: scalar, see ``class_shift``.

    Returns:
        [B] losses.
    """
    return -F.logsigmoid(torch.where(desirable, rewards - shift, shift - rewards))


def group_labels(
    labels: Sequence[bool | None],
    ranks: Sequence[int | None],
    rewards: Sequence[float | None],
) -> list[bool | None]:
    """Which responses of one group are desirable; None for those that nothing says it of.

    Given labels count first (responses without one are left out), then ranks (first is desirable,
    last is not, those between are left out), then rewards (above the group's mean or not).
    A group whose ranks or rewards are all equal says nothing.

    Example:
        >>> group_labels([None] * 3, [2, 0, 1], [None] * 3)
        [False, True, None]
        >>> group_labels([None] * 3, [None] * 3, [0.0, 1.0, 0.2])
        [False, True, False]
    """
    count = len(labels)
    if any(v is not None for v in labels):
        return [None if v is None else bool(v) for v in labels]
    if ranks and all(r is not None for r in ranks):
        known = [int(r) for r in ranks]  # type: ignore[arg-type]
        first, last = min(known), max(known)
        if first == last:
            return [None] * count
        return [True if r == first else False if r == last else None for r in known]
    if rewards and all(r is not None for r in rewards):
        scores = [float(r) for r in rewards]  # type: ignore[arg-type]
        if min(scores) == max(scores):
            return [None] * count
        mean = sum(scores) / count
        return [score > mean for score in scores]
    return [None] * count

"""Binary classifier optimisation on single responses (arXiv 2404.04656)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.unpaired import bco_unpaired_loss, class_shift
from lit_pref.objectives.base import SharedArgs
from lit_pref.objectives.checks import positive
from lit_pref.objectives.families.unpaired import UnpairedModule
from lit_pref.types import Batch, Needs, Policy

__all__ = ["BCOUnpaired"]


class BCOUnpaired(UnpairedModule):
    r"""A classifier of desirable against undesirable, cut halfway between their mean rewards.

    .. math:: -E_{D^+}[\log\sigma(r - \delta)] - E_{D^-}[\log\sigma(\delta - r)]

    (arXiv 2404.04656; a single response's loss is ``functional.unpaired.bco_unpaired_loss``, the
    shift ``functional.unpaired.class_shift``.) Each class counts the same, however many it has;
    a class that the batch lacks adds nothing. Within a class, responses count by their weights, in
    the mean of the rewards too.

    Deviation: the shift is that of the present batch, not a running mean; the density ratio for
    labels from different prompts (underlying distribution matching) is left out.

    Args:
        policy: the model to train.
        beta: scale of the log-ratios, larger than 0.
        **shared: see ``ObjectiveModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(reference=True)
    negative_gradient = True
    couples_batch = True
    paper = "2404.04656"

    def __init__(self, policy: Policy, *, beta: float = 0.1, **shared: Unpack[SharedArgs]) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)

    def response_loss(
        self, log_ratio: Tensor, desirable: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rewards = self.beta * log_ratio
        weight = batch.view.response["weight"].to(rewards)
        shift = class_shift(rewards, desirable, weight=weight)
        losses = bco_unpaired_loss(rewards, desirable, shift=shift)
        positive_share = (weight * desirable).sum() / weight.sum()
        # From the mean over the batch to the sum of the means of its two classes.
        share = desirable.to(losses) * positive_share + (~desirable) * (1 - positive_share)
        metrics = {"rewards": rewards, "threshold": shift, "rewards/shift": shift}
        return losses / share, metrics

"""Binary classifier optimisation on pairs (arXiv 2404.04656)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import bco_loss, bco_shift
from lit_pref.objectives.checks import positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["BCO"]


class BCO(PairwiseModule):
    """A classifier of chosen against rejected, cut at the mean reward of the batch.

    The loss is ``functional.preference_reference.bco_loss``. Pairs count in the mean as they do in
    the loss, by their weights.

    Deviation: the shift is the mean over the pairs of the present batch, not a running one.

    Args:
        policy: the model to train.
        beta: scale of the log-ratios, larger than 0.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    couples_batch = True
    paper = "2404.04656"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shift = bco_shift(
            chosen.log_ratio, rejected.log_ratio, beta=self.beta, weight=chosen.weight
        )
        losses = bco_loss(chosen.log_ratio, rejected.log_ratio, beta=self.beta, shift=shift)
        metrics = reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)
        return losses, {**metrics, "rewards/shift": shift.expand(len(losses))}

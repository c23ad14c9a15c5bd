"""DPO-Positive (arXiv 2402.13228)."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import dpop_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["DPOP"]


class DPOP(PairwiseModule):
    """DPO that does not let the chosen response fall below the reference.

    The loss is ``functional.preference_reference.dpop_loss``.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        penalty: lambda, the weight of the fall below the reference; 0 is DPO.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2402.13228"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.3,
        penalty: float = 50.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.3)
        self.penalty = within(
            "penalty", penalty, 0, math.inf, what="the weight of the penalty, usually 50"
        )

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = dpop_loss(
            chosen.log_ratio, rejected.log_ratio, beta=self.beta, penalty=self.penalty
        )
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

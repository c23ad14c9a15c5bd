"""Noise contrastive alignment (arXiv 2402.05369)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import nca_loss
from lit_pref.objectives.checks import positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["NCA"]


class NCA(PairwiseModule):
    """Rewards of single responses against noise.

    The loss is ``functional.preference_reference.nca_loss``.

    Args:
        policy: the model to train.
        beta: scale of the log-ratios, larger than 0.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2402.05369"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.01,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.01)

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = nca_loss(chosen.log_ratio, rejected.log_ratio, beta=self.beta)
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

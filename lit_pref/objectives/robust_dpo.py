"""Provably robust DPO (arXiv 2403.00409)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import robust_dpo_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["RobustDPO"]


class RobustDPO(PairwiseModule):
    """DPO for labels of which a known part is wrong.

    The loss is ``functional.preference.robust_dpo_loss``.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5); at 0 it is DPO.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2403.00409"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.1,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        self.label_smoothing = within(
            "label_smoothing",
            label_smoothing,
            0,
            0.5,
            ends="[)",
            what="the probability that a label is wrong",
        )

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = chosen.log_ratio - rejected.log_ratio
        losses = robust_dpo_loss(logits, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

"""Efficient exact optimisation (arXiv 2402.00856)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import exo_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["EXO"]


class EXO(PairwiseModule):
    """Reverse KL to the smoothed label.

    The loss is ``functional.preference_reference.exo_loss``.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        label_smoothing: epsilon, in (0, 0.5); the loss is infinite at 0.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2402.00856"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.001,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="()", what="epsilon, 1e-3 as published"
        )

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = exo_loss(
            chosen.log_ratio,
            rejected.log_ratio,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

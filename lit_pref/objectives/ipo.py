"""Identity preference optimisation (arXiv 2310.12036)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import ipo_loss
from lit_pref.objectives.checks import choice, positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["IPO"]


class IPO(PairwiseModule):
    """Regression of the difference of log-ratios on a margin.

    The loss is ``functional.preference.ipo_loss``.

    Args:
        policy: the model to train.
        tau: strength of the regularisation; the margin is 1 / (2 tau) nats.
        margin: the margin itself, instead of ``tau`` (10 in the bandit of arXiv 2404.14367, whose
            code calls it beta).
        reduction: log-ratios are the ``sum`` over tokens as published, or their ``mean`` as in
            TRL (where the margin is then in nats per token).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2310.12036"

    def __init__(
        self,
        policy: Policy,
        *,
        tau: float = 0.1,
        margin: float | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.tau = positive("tau", tau, usual=0.1)
        self.margin = 0.5 / self.tau if margin is None else positive("margin", margin, usual=10)
        choice("reduction", reduction, ("sum", "mean"))
        self.reduction = reduction

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.reduction == "sum":
            score_w, score_l = chosen.log_ratio, rejected.log_ratio
        else:
            score_w, score_l = chosen.mean_log_ratio, rejected.mean_log_ratio
        losses = ipo_loss(score_w - score_l, margin=self.margin)
        return losses, reward_metrics(score_w, score_l)

"""Likelihood of the chosen, unlikelihood of the rejected response (arXiv 1908.04319)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.reference_free import unlikelihood_loss
from lit_pref.objectives.checks import choice, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["Unlikelihood"]


class Unlikelihood(PairwiseModule):
    """The chosen response up, the rejected one down while it is still likely.

    The loss is ``functional.reference_free.unlikelihood_loss``.

    Args:
        policy: the model to train.
        alpha: weight of the unlikelihood of the rejected response; 0 is ``pref_ft``.
        probability: of a response, the product over its tokens (``sum`` of log-probs), or its
            geometric mean per token (``mean``), which is felt by long responses too. Both terms
            use it.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "1908.04319"

    def __init__(
        self,
        policy: Policy,
        *,
        alpha: float = 1.0,
        probability: Literal["sum", "mean"] = "sum",
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.alpha = within("alpha", alpha, 0, math.inf, what="a weight, 1 as published")
        choice("probability", probability, ("sum", "mean"))
        self.probability = probability

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.probability == "sum":
            better, worse = chosen.logps, rejected.logps
        else:
            better, worse = chosen.mean_logps, rejected.mean_logps
        losses = unlikelihood_loss(better, worse, alpha=self.alpha)
        return losses, {**reward_metrics(better, worse), "nll": -better}

"""Simple preference optimisation (arXiv 2405.14734)."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.reference_free import simpo_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["SimPO"]


class SimPO(PairwiseModule):
    """Log-probs per token with a target margin, no reference.

    The loss is ``functional.reference_free.simpo_loss``.

    Args:
        policy: the model to train.
        beta: scale of the log-probs per token, larger than 0; 2 to 10 as published.
        gamma: target margin; 0.3 to 1.6 with beta 2 as published.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        nll_coef: weight of the chosen response's negative log-likelihood per token. 0 as
            published; TRL's ``cpo_alpha`` is this weight and is 1 unless set to 0 (CPO-SimPO).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "2405.14734"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 2.0,
        gamma: float = 0.5,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=2.0)
        self.gamma = within("gamma", gamma, 0, math.inf, what="the target margin")
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )
        self.nll_coef = within("nll_coef", nll_coef, 0, math.inf, what="a weight, 0 for none")

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = simpo_loss(
            chosen.mean_logps,
            rejected.mean_logps,
            beta=self.beta,
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
        )
        metrics = reward_metrics(self.beta * chosen.mean_logps, self.beta * rejected.mean_logps)
        if self.nll_coef > 0:
            metrics["nll"] = -chosen.mean_logps
            losses = losses + self.nll_coef * metrics["nll"]
        return losses, metrics

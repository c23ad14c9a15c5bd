"""Contrastive preference optimisation (arXiv 2401.08417)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.reference_free import cpo_loss
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["CPO"]


class CPO(PairwiseModule):
    r"""DPO with a uniform reference, plus the likelihood of the chosen response.

    .. math:: L_{prefer} - \lambda\log\pi(y_w)

    (arXiv 2401.08417, with lambda 1; the first part is ``functional.reference_free.cpo_loss``.)

    Args:
        policy: the model to train.
        beta: scale of the log-probs, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        nll_coef: lambda, the weight of the negative log-likelihood (TRL: ``cpo_alpha``).
        nll_reduction: the likelihood is the ``sum`` over the response's tokens, as published, or
            their ``mean``. TRL takes one mean over the tokens of all chosen responses, which is
            ``mean`` where they are of equal length.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "2401.08417"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        nll_coef: float = 1.0,
        nll_reduction: Literal["sum", "mean"] = "sum",
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )
        self.nll_coef = within("nll_coef", nll_coef, 0, math.inf, what="a weight, 1 as published")
        choice("nll_reduction", nll_reduction, ("sum", "mean"))
        self.nll_reduction = nll_reduction

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = cpo_loss(
            chosen.logps, rejected.logps, beta=self.beta, label_smoothing=self.label_smoothing
        )
        metrics = reward_metrics(self.beta * chosen.logps, self.beta * rejected.logps)
        metrics["nll"] = -(chosen.logps if self.nll_reduction == "sum" else chosen.mean_logps)
        return losses + self.nll_coef * metrics["nll"], metrics

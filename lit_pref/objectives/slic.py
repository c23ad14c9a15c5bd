"""Sequence likelihood calibration with a hinge (arXiv 2305.10425)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import slic_loss
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["SLiC"]


class SLiC(PairwiseModule):
    """Hinge loss on the difference of two responses.

    The loss is ``functional.preference.slic_loss``, plus ``nll_coef`` times the negative
    log-likelihood of the chosen response, per token.

    Args:
        policy: the model to train.
        beta: scale of the difference, larger than 0.
        delta: margin beyond which a pair has no gradient, larger than 0.
        scores: ``log_ratio``: to the reference (RSO, arXiv 2309.06657; TRL's ``hinge``);
            ``logp``: log-probs as in SLiC-HF, which needs no reference.
        nll_coef: weight of the regularisation to the chosen response (SLiC-HF's lambda).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference where one is needed.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2305.10425"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        delta: float = 1.0,
        scores: Literal["log_ratio", "logp"] = "log_ratio",
        nll_coef: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        choice("scores", scores, ("log_ratio", "logp"))
        if scores == "logp":
            self.needs = Needs(pairs=True, responses=2)
        super().__init__(policy, **shared)
        self.scores = scores
        self.beta = positive("beta", beta, usual=0.1)
        self.delta = positive("delta", delta, usual=1.0)
        self.nll_coef = within("nll_coef", nll_coef, 0, math.inf, what="a weight, 0 for none")

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.scores == "log_ratio":
            score_w, score_l = chosen.log_ratio, rejected.log_ratio
        else:
            score_w, score_l = chosen.logps, rejected.logps
        losses = slic_loss(score_w - score_l, beta=self.beta, delta=self.delta)
        metrics = reward_metrics(self.beta * score_w, self.beta * score_l)
        metrics["pairs/active"] = (losses > 0).to(losses)
        if self.nll_coef > 0:
            nll = -chosen.logps / chosen.lengths.clamp(min=1)
            losses = losses + self.nll_coef * nll
            metrics["nll"] = nll
        return losses, metrics

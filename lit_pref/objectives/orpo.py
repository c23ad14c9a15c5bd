"""Odds ratio preference optimisation (arXiv 2403.07691)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.reference_free import log_odds, odds_ratio_loss
from lit_pref.objectives.checks import choice, positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["ORPO"]


class ORPO(PairwiseModule):
    r"""Supervised fine-tuning on the chosen response with an odds-ratio penalty.

    .. math:: L_{SFT} + \lambda L_{OR}

    (arXiv 2403.07691, eq. 6; the second part is ``functional.reference_free.odds_ratio_loss``.)

    Args:
        policy: the model to train.
        beta: lambda, the weight of the odds-ratio part, larger than 0 (TRL's name too).
        nll_reduction: the negative log-likelihood is the ``mean`` over the response's tokens
            (eq. 2), or their ``sum``. TRL takes one mean over the tokens of all chosen responses
            and of their prompts.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "2403.07691"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        nll_reduction: Literal["sum", "mean"] = "mean",
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        choice("nll_reduction", nll_reduction, ("sum", "mean"))
        self.nll_reduction = nll_reduction

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        odds = odds_ratio_loss(chosen.mean_logps, rejected.mean_logps)
        nll = -(chosen.logps if self.nll_reduction == "sum" else chosen.mean_logps)
        metrics = reward_metrics(self.beta * chosen.mean_logps, self.beta * rejected.mean_logps)
        metrics["nll"] = nll
        metrics["log_odds_chosen"] = log_odds(chosen.mean_logps) - log_odds(rejected.mean_logps)
        metrics["log_odds_ratio"] = -odds
        return nll + self.beta * odds, metrics

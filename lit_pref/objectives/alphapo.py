"""AlphaPO: SimPO with another shape of the reward (arXiv 2501.03884)."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.reference_free import alphapo_reward, preference_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy, Refusal

__all__ = ["AlphaPO"]


class AlphaPO(PairwiseModule):
    r"""SimPO whose reward is a power of the probability per token instead of its log.

    .. math:: -\log\sigma\left(\beta r_\alpha(y_w) - \beta r_\alpha(y_l) - \gamma\right)

    (arXiv 2501.03884; the reward is ``functional.reference_free.alphapo_reward``.)

    Args:
        policy: the model to train.
        beta: scale of the rewards, larger than 0.
        gamma: target margin.
        alpha: shape of the reward, any finite number; 0 is SimPO.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        nll_coef: weight of the chosen response's negative log-likelihood per token. 0 as
            published; TRL's ``cpo_alpha`` is this weight and is 1 unless set to 0.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "2501.03884"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 2.5,
        gamma: float = 0.25,
        alpha: float = 0.25,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=2.5)
        self.gamma = within("gamma", gamma, 0, math.inf, what="the target margin")
        if not math.isfinite(alpha):
            raise Refusal(f"objective.alpha must be a finite number, got {alpha}; 0 is SimPO")
        self.alpha = float(alpha)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )
        self.nll_coef = within("nll_coef", nll_coef, 0, math.inf, what="a weight, 0 for none")

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        reward_w = self.beta * alphapo_reward(chosen.mean_logps, alpha=self.alpha)
        reward_l = self.beta * alphapo_reward(rejected.mean_logps, alpha=self.alpha)
        losses = preference_loss(
            reward_w - reward_l - self.gamma, label_smoothing=self.label_smoothing
        )
        metrics = reward_metrics(reward_w, reward_l)
        if self.nll_coef > 0:
            metrics["nll"] = -chosen.mean_logps
            losses = losses + self.nll_coef * metrics["nll"]
        return losses, metrics

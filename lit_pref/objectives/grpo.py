"""Group relative policy optimisation and its relatives, as orthogonal parameters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.advantages import group_zscore, subtract_group_mean, subtract_mean, whiten
from lit_pref.functional.policy_gradient import (
    capped_policy_loss,
    clipped_policy_loss,
    probability_ratio,
)
from lit_pref.objectives.checks import choice, within
from lit_pref.objectives.families.policy_gradient import PolicyGradientArgs, PolicyGradientModule
from lit_pref.transfer import sent
from lit_pref.types import FlatTokens, Needs, Policy, Refusal

__all__ = ["GRPO"]


class GRPO(PolicyGradientModule):
    r"""Clipped policy gradient with advantages relative to the prompt's other responses.

    .. math:: -\frac{1}{B}\sum_i\frac{1}{|y_i|}\sum_t
        \min(\rho_{i,t}A_i,\ \mathrm{clip}(\rho_{i,t}, 1-\epsilon, 1+\epsilon)A_i)
        + \beta\,\mathrm{KL}_{k3},\quad A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)}

    (arXiv 2402.03300, eq. 3 and 4.) The relatives differ in one choice or two each:

    ============  ===========  =======  ===========  =========  ===============  =============
    name          ratio        clip     epsilons     baseline   scale            denominator
    ============  ===========  =======  ===========  =========  ===============  =============
    grpo          token        both     0.2, 0.2     group      group            response_mean
    dr_grpo       token        both     0.2, 0.2     group      none             constant
    dapo          token        both     0.2, 0.28    group      group            tokens
    gspo          sequence     both     3e-4, 4e-4   group      group            response_mean
    cispo         token        weight   1 (off), 2   group      group            tokens
    reinforce_pp  token        both     0.2, 0.2     batch      batch            tokens
    ============  ===========  =======  ===========  =========  ===============  =============

    Args:
        policy: the model to train.
        ratio: ``token``, or ``sequence``: the geometric mean over the response (arXiv 2507.18071).
        clip: ``both``: PPO's clipped surrogate; ``weight``: the clipped ratio multiplies the
            gradient and no token loses it (CISPO, arXiv 2506.13585).
        epsilon_low: how far below 1 a ratio counts.
        epsilon_high: how far above 1 a ratio counts.
        baseline: mean reward of the ``group``, of the ``batch`` (the round), or ``none``.
        scale: standard deviation to divide by: of the ``group``, of the ``batch``, or ``none``
            (arXiv 2503.20783).
        **shared: see ``PolicyGradientModule``; ``kl_in`` is ``loss`` and ``denominator``
            ``response_mean`` unless given.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(rewards=True, fresh=True, responses=2)
    uses_old_logps = True
    paper = "2402.03300"

    def __init__(
        self,
        policy: Policy,
        *,
        ratio: Literal["token", "sequence"] = "token",
        clip: Literal["both", "weight"] = "both",
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        baseline: Literal["group", "batch", "none"] = "group",
        scale: Literal["group", "batch", "none"] = "group",
        **shared: Unpack[PolicyGradientArgs],
    ) -> None:
        choice("ratio", ratio, ("token", "sequence"))
        choice("clip", clip, ("both", "weight"))
        choice("baseline", baseline, ("group", "batch", "none"))
        choice("scale", scale, ("group", "batch", "none"))
        if scale == "group" and baseline != "group":
            raise Refusal(
                f"objective.baseline={baseline} with objective.scale=group mixes two statistics; "
                "use baseline=group, or scale=batch or scale=none"
            )
        shared.setdefault("kl_in", "loss")
        shared.setdefault("denominator", "response_mean")
        if "group" not in (baseline, scale):
            self.needs = Needs(rewards=True, fresh=True)
        super().__init__(policy, **shared)
        self.ratio, self.clip = ratio, clip
        self.epsilon_low = within(
            "epsilon_low", epsilon_low, 0, 1, what="how far below 1 a ratio counts"
        )
        self.epsilon_high = within(
            "epsilon_high",
            epsilon_high,
            0,
            float("inf"),
            ends="[)",
            what="how far above 1 a ratio counts",
        )
        self.baseline, self.scale = baseline, scale

    def advantages(
        self, rewards: Tensor, group: Tensor, count: int, *, weight: Tensor | None = None
    ) -> Tensor:
        if self.scale == "group":
            # 1e-4 and n - 1 as in the common implementations; equal rewards give 0
            return group_zscore(rewards, group, count, eps=1e-4, correction=1)
        centred = self._centred(rewards, group, count, weight)
        tokenwise = self.kl_coef > 0 and self.kl_in == "reward_to_go"
        if self.scale == "batch" and not tokenwise:
            return whiten(centred, shift=self.baseline == "batch", weight=weight)
        return centred

    def _centred(self, rewards: Tensor, group: Tensor, count: int, weight: Tensor | None) -> Tensor:
        if self.baseline == "group":
            return subtract_group_mean(rewards, group, count)
        return subtract_mean(rewards, weight=weight) if self.baseline == "batch" else rewards

    def scale_tokens(self, advantages: Tensor, *, weight: Tensor) -> Tensor:
        if self.scale == "batch":
            return whiten(advantages, shift=self.baseline == "batch", weight=weight)
        return advantages

    def token_loss(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, tokens: FlatTokens
    ) -> Tensor:
        lengths = sent(tokens.lengths, logps.device)
        ratio = probability_ratio(logps, old_logps, tokens.owner(), lengths, level=self.ratio)
        self.track_ratio(ratio, self.epsilon_low, self.epsilon_high)
        bounds = {"low": self.epsilon_low, "high": self.epsilon_high}
        if self.clip == "weight":
            return capped_policy_loss(logps, ratio, advantages, **bounds)
        return clipped_policy_loss(ratio, advantages, **bounds)

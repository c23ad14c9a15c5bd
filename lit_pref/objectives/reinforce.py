"""REINFORCE on whole responses (Williams, 1992; arXiv 2402.14740 for language models)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.advantages import group_zscore, leave_one_out, subtract_mean
from lit_pref.objectives.families.policy_gradient import PolicyGradientArgs, PolicyGradientModule
from lit_pref.types import Needs, Policy, Refusal

__all__ = ["REINFORCE"]

Baseline = Literal["none", "batch_mean", "leave_one_out", "group_zscore"]


class REINFORCE(PolicyGradientModule):
    r"""Policy gradient with a baseline.

    .. math:: -\frac{1}{B}\sum_i A_i \sum_t \log\pi(y_{i,t})

    Sums over tokens, mean over responses (arXiv 2402.14740, eq. 6 to 8).

    Args:
        policy: the model to train.
        baseline: what is subtracted from the reward: ``leave_one_out`` (mean of the other
            responses to the prompt), ``batch_mean`` (of the round), ``group_zscore`` (mean of the
            prompt's responses, over their standard deviation) or ``none``.
        **shared: see ``PolicyGradientModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(rewards=True, fresh=True)
    paper = "2402.14740"

    def __init__(
        self,
        policy: Policy,
        *,
        baseline: Baseline = "leave_one_out",
        **shared: Unpack[PolicyGradientArgs],
    ) -> None:
        if baseline not in ("none", "batch_mean", "leave_one_out", "group_zscore"):
            raise Refusal(
                "objective.baseline must be none, batch_mean, leave_one_out or group_zscore, "
                f"got {baseline!r}"
            )
        if baseline in ("leave_one_out", "group_zscore"):
            self.needs = Needs(rewards=True, fresh=True, responses=2)
        super().__init__(policy, **shared)
        self.baseline: Baseline = baseline

    def advantages(self, rewards: Tensor, group: Tensor, count: int) -> Tensor:
        if self.baseline == "leave_one_out":
            return leave_one_out(rewards, group, count)
        if self.baseline == "group_zscore":
            return group_zscore(rewards, group, count)
        return subtract_mean(rewards) if self.baseline == "batch_mean" else rewards

    def token_loss(self, logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
        return -advantages * logps

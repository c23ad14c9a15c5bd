"""REINFORCE on whole responses (Williams, 1992; arXiv 2402.14740 for language models)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.advantages import group_zscore, leave_one_out, subtract_mean
from lit_pref.functional.policy_gradient import probability_ratio
from lit_pref.objectives.checks import choice, positive
from lit_pref.objectives.families.policy_gradient import PolicyGradientArgs, PolicyGradientModule
from lit_pref.transfer import sent
from lit_pref.types import Batch, FlatTokens, Needs, Policy, Round, TokenStats

__all__ = ["REINFORCE"]

Baseline = Literal["none", "running_mean", "batch_mean", "leave_one_out", "group_zscore"]
Importance = Literal["none", "token", "response"]
BASELINES = ("none", "running_mean", "batch_mean", "leave_one_out", "group_zscore")


class REINFORCE(PolicyGradientModule):
    r"""Policy gradient with a baseline.

    .. math:: -\frac{1}{B}\sum_i A_i \sum_t \log\pi(y_{i,t})

    Sums over tokens, mean over responses (arXiv 2402.14740, eq. 6 to 8).

    Args:
        policy: the model to train.
        baseline: what is subtracted from the reward: ``leave_one_out`` (mean of the other
            responses to the prompt), ``batch_mean`` (of the round), ``running_mean`` (of all
            rewards seen so far, this round's included: arXiv 2404.14367, its language-model code),
            ``group_zscore`` (mean of the prompt's responses, over their standard deviation: its
            bandit code) or ``none``.
        shift: ``min`` subtracts the round's smallest advantage, which leaves no negative gradient
            (the ablation of arXiv 2404.14367's code) but that of a KL penalty outside the reward
            (``kl_in`` other than ``reward``); ``none`` is REINFORCE.
        importance: weighs samples that are not of the present policy by its probability over that
            of what sampled them, without a gradient, for each ``token`` or whole ``response``.
            Needed for stored samples, which must have log-probs of their behaviour.
        importance_cap: largest such weight.
        **shared: see ``PolicyGradientModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(rewards=True, fresh=True)
    reuse = False
    paper = "2402.14740"

    def __init__(
        self,
        policy: Policy,
        *,
        baseline: Baseline = "leave_one_out",
        shift: Literal["none", "min"] = "none",
        importance: Importance = "none",
        importance_cap: float = 1.0,
        **shared: Unpack[PolicyGradientArgs],
    ) -> None:
        choice("baseline", baseline, BASELINES)
        choice("shift", shift, ("none", "min"))
        choice("importance", importance, ("none", "token", "response"))
        self.needs = Needs(
            rewards=True,
            fresh=importance == "none",
            behaviours=importance != "none",
            responses=2 if baseline in ("leave_one_out", "group_zscore") else 1,
            unless="objective.importance=token",
        )
        self.reuse = importance != "none"
        super().__init__(policy, **shared)
        # a penalty outside the reward pushes tokens down whatever the advantages are
        apart = self.kl_coef > 0 and self.kl_in != "reward"
        self.negative_gradient = shift == "none" or apart
        self.baseline: Baseline = baseline
        self.shift = shift
        self.importance: Importance = importance
        self.importance_cap = positive("importance_cap", importance_cap, usual=1.0)
        self.reward_sum = torch.zeros((), dtype=torch.float64)  # on the host
        self.reward_count = torch.zeros((), dtype=torch.float64)

    # ------------------------------------------------------------------ advantages

    def advantages(
        self, rewards: Tensor, group: Tensor, count: int, *, weight: Tensor | None = None
    ) -> Tensor:
        out = self._baselined(rewards, group, count, weight)
        return out - out.min() if self.shift == "min" and len(out) else out

    def _baselined(
        self, rewards: Tensor, group: Tensor, count: int, weight: Tensor | None
    ) -> Tensor:
        if self.baseline == "leave_one_out":
            return leave_one_out(rewards, group, count)
        if self.baseline == "group_zscore":
            return group_zscore(rewards, group, count)
        if self.baseline == "batch_mean":
            return subtract_mean(rewards, weight=weight)
        if self.baseline == "running_mean":
            often = torch.ones_like(rewards) if weight is None else weight.to(rewards)
            total = self.reward_sum + (rewards * often).sum()
            seen = self.reward_count + often.sum()
            return rewards - total / torch.where(seen > 0, seen, torch.ones_like(seen))
        return rewards

    def observe(self, round: Round) -> None:
        """Absorb the round's rewards, with the penalty that they carry, into the running mean."""
        rewards = self.penalised_rewards(round)
        weight = self.response_columns(round)["weight"].to(rewards)
        self.reward_sum += (rewards * weight).sum()
        self.reward_count += weight.sum()

    def objective_state(self) -> dict[str, Tensor]:
        return {"reward_sum": self.reward_sum, "reward_count": self.reward_count}

    def load_objective_state(self, state: dict[str, Tensor]) -> None:
        self.reward_sum.copy_(state["reward_sum"])
        self.reward_count.copy_(state["reward_count"])

    # ------------------------------------------------------------------ the loss

    @property
    def uses_old_logps(self) -> bool:  # type: ignore[override]
        return self.importance != "none"

    def policy_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        if self.importance != "none" and "behaviour_logps" in batch.notes.token:
            batch.notes.token["old_logps"] = batch.notes.token["behaviour_logps"]
        return super().policy_loss(stats, batch)

    def token_loss(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, tokens: FlatTokens
    ) -> Tensor:
        if self.importance == "none":
            return -advantages * logps
        lengths = sent(tokens.lengths, logps.device)
        ratio = probability_ratio(
            logps.detach(), old_logps, tokens.owner(), lengths, level=self.importance
        )
        self.track_ratio(ratio, None, self.importance_cap - 1)
        return -ratio.clamp(max=self.importance_cap) * advantages * logps

"""Proximal policy optimisation with a critic on the policy's trunk (arXiv 1707.06347)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.advantages import generalised_advantages, group_zscore, whiten
from lit_pref.functional.policy_gradient import (
    adaptive_kl,
    clipped_policy_loss,
    clipped_value_loss,
    probability_ratio,
    token_weights,
)
from lit_pref.functional.segments import weighted_mean
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.policy_gradient import PolicyGradientArgs, PolicyGradientModule
from lit_pref.policies.heads import ScalarHead
from lit_pref.transfer import sent
from lit_pref.types import (
    Batch,
    FlatTokens,
    Forward,
    Needs,
    Policy,
    Refusal,
    Round,
    TokenStats,
    View,
)

__all__ = ["PPO"]


class PPO(PolicyGradientModule):
    r"""Clipped policy gradient with generalised advantages and a clipped value loss.

    .. math:: -\min(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon)A_t)
        + c_v\,\tfrac12\max\{(V_t-R_t)^2, (V_{clip,t}-R_t)^2\}

    averaged over tokens (arXiv 1707.06347, eq. 7 and 9; for language models arXiv 1909.08593). The
    reward of a token is minus the KL penalty, the response's reward is added at the last one. Old
    log-probs, old values and advantages are made once per round; advantages are whitened over it.

    Deviation: the reference code of arXiv 2404.14367 skips a batch whose mean ratio is above 10;
    here the clip fractions are logged instead.

    Args:
        policy: the model to train.
        critic: from hidden state to value; starts at 0 unless given.
        advantage: ``gae``, or ``group_zscore``: the z-score among the prompt's responses, the
            same for all tokens and without a critic (the bandit code of arXiv 2404.14367).
        epsilon: clip range of the ratio.
        gamma: discount.
        lam: lambda of the advantages.
        value_coef: weight of the value loss.
        value_clip: how far a value may move from its old one; None for no clipping.
        value_lr: learning rate of the critic; None for the policy's.
        whiten_advantages: ``round`` or ``none``.
        kl_target: KL per response in nats to hold by adapting ``kl_coef`` (arXiv 1909.08593,
            section 2.2); None keeps it fixed.
        kl_horizon: responses over which the coefficient may change by about 20 %.
        **shared: see ``PolicyGradientModule``; ``denominator`` is ``tokens`` unless given.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(rewards=True, fresh=True)
    uses_old_logps = True
    paper = "1707.06347"

    def __init__(
        self,
        policy: Policy,
        *,
        critic: ScalarHead | None = None,
        advantage: Literal["gae", "group_zscore"] = "gae",
        epsilon: float = 0.2,
        gamma: float = 1.0,
        lam: float = 0.95,
        value_coef: float = 0.1,
        value_clip: float | None = 0.2,
        value_lr: float | None = None,
        whiten_advantages: Literal["round", "none"] = "round",
        kl_target: float | None = None,
        kl_horizon: float = 10_000,
        **shared: Unpack[PolicyGradientArgs],
    ) -> None:
        choice("advantage", advantage, ("gae", "group_zscore"))
        choice("whiten_advantages", whiten_advantages, ("round", "none"))
        shared.setdefault("denominator", "tokens")
        if advantage == "group_zscore":
            self.needs = Needs(rewards=True, fresh=True, responses=2)
        if advantage == "gae" and shared.get("kl_in", "reward") == "reward_to_go":
            raise Refusal(
                "objective.kl_in=reward_to_go does not apply to PPO's advantages, which spread the "
                "penalty over tokens already; use objective.kl_in=reward"
            )
        super().__init__(policy, **shared)
        self.advantage = advantage
        self.epsilon = positive("epsilon", epsilon, usual=0.2)
        self.gamma = within("gamma", gamma, 0, 1, what="the discount")
        self.lam = within("lam", lam, 0, 1, what="lambda of the advantages")
        inf = float("inf")
        self.value_coef = within("value_coef", value_coef, 0, inf, ends="[)", what="a weight")
        clip = value_clip
        self.value_clip = None if clip is None else positive("value_clip", clip, usual=0.2)
        self.value_lr = None if value_lr is None else positive("value_lr", value_lr, usual=1e-3)
        self.whiten_advantages = whiten_advantages
        self.kl_target = None if kl_target is None else positive("kl_target", kl_target, usual=6.0)
        self.kl_horizon = positive("kl_horizon", kl_horizon, usual=10_000)
        if self.kl_target is not None and (self.kl_coef == 0 or self.kl_in == "loss"):
            raise Refusal(
                f"objective.kl_target={kl_target} adapts the penalty in the reward; set "
                "objective.kl_coef above 0 (usual: 0.02 to 0.2) and objective.kl_in=reward"
            )
        self.shards = advantage != "gae"
        self.critic = (critic or ScalarHead(init="zero", bias=True)) if advantage == "gae" else None
        self.kl_weight = torch.tensor(self.kl_coef, dtype=torch.float64)  # on the host

    # ------------------------------------------------------------------ once per round

    def annotate(self, round: Round, forward: Forward) -> View:
        if self.critic is None:
            return super().annotate(round, forward)
        tokens = round.tokens()
        notes = View()
        if self.kl_coef > 0:
            notes.token["ref_logps"] = forward("reference", tokens).logps
        out = forward("policy_and_critic", tokens)
        values = out.values
        notes.token["old_logps"] = out.logps
        notes.token["values"] = torch.zeros(0) if values is None else values
        return notes

    def models(self) -> dict[str, Any]:
        critic = self.critic
        extra = {} if critic is None else {"policy_and_critic": _WithValues(self.policy, critic)}
        return {**super().models(), **extra}

    def view(self, round: Round, *, seed: int) -> View:
        if self.critic is None:
            return super().view(round, seed=seed)
        tokens, rewards = round.tokens(), self.rewards(round)
        columns = self.response_columns(round)
        per_token = torch.zeros(sum(tokens.lengths), dtype=torch.float64)
        if self.kl_coef > 0 and self.kl_in == "reward":
            per_token -= self.penalty_weight() * self.log_ratio(round)
        ends = torch.tensor(tokens.lengths, dtype=torch.long).cumsum(0) - 1
        per_token[ends] += rewards
        values = round.notes.token["values"].double()
        advantage = generalised_advantages(
            per_token, values, tokens.lengths, gamma=self.gamma, lam=self.lam
        )
        returns = advantage + values
        round.counts["value/explained_variance"] = _explained(values, returns)
        if self.whiten_advantages == "round":
            advantage = whiten(advantage, weight=columns["weight"][tokens.owner()])
        return View(
            response=columns,
            token={"advantage": advantage.float(), "return": returns.float()},
        )

    def penalty_weight(self) -> float:
        return float(self.kl_weight)

    def advantages(
        self, rewards: Tensor, group: Tensor, count: int, *, weight: Tensor | None = None
    ) -> Tensor:
        return group_zscore(rewards, group, count)

    def observe(self, round: Round) -> None:
        """Adapt the KL coefficient to the round's KL."""
        if self.kl_target is None:
            return
        kl = self.response_sums(self.log_ratio(round), round.tokens())
        round.counts["round/kl_coef"] = float(self.kl_weight)
        if len(kl):
            weight = self.response_columns(round)["weight"].to(kl)
            mean = weighted_mean(kl, weight)
            self.kl_weight.copy_(
                adaptive_kl(
                    self.kl_weight, mean.to(self.kl_weight), target=self.kl_target,
                    horizon=self.kl_horizon, count=float(weight.sum()),
                )
            )  # fmt: skip

    def objective_state(self) -> dict[str, Tensor]:
        return {"kl_weight": self.kl_weight}

    def load_objective_state(self, state: dict[str, Tensor]) -> None:
        self.kl_weight.copy_(state["kl_weight"])

    # ------------------------------------------------------------------ the loss

    def token_stats(self) -> tuple[str, ...]:
        return (*super().token_stats(), *(("hidden",) if self.critic is not None else ()))

    def token_loss(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, tokens: FlatTokens
    ) -> Tensor:
        lengths = sent(tokens.lengths, logps.device)
        ratio = probability_ratio(logps, old_logps, tokens.owner(), lengths, level="token")
        self.track_ratio(ratio, self.epsilon, self.epsilon)
        return clipped_policy_loss(ratio, advantages, low=self.epsilon, high=self.epsilon)

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        loss = self.policy_loss(stats, batch)
        if self.critic is None:
            return loss
        assert stats.hidden is not None
        values = self.critic(stats.hidden)
        old, returns = batch.notes.token["values"], batch.view.token["return"]
        losses = clipped_value_loss(
            values, old.to(values), returns.to(values), clip=self.value_clip
        )
        owner, count = batch.tokens.owner(), batch.counts["response/counted_tokens"]
        weight = batch.view.response["weight"].to(values)
        lengths = sent(batch.tokens.lengths, values.device)
        shares = token_weights(owner, lengths, weight, denominator="tokens", constant=None)
        self.window.add("value/loss", losses, shares)
        self.window.add("value/mean", values, shares)
        if self.value_clip is not None:
            moved = ((values - old.to(values)).abs() > self.value_clip).to(values)
            self.window.add("value/clip_ratio", moved, shares)
        return loss + self.value_coef * (losses * shares).sum() / count

    # ------------------------------------------------------------------ set-up

    def configure_model(self) -> None:
        super().configure_model()
        if self.critic is not None:
            dtype = next(self.policy.parameters()).dtype
            self.critic.prepare(self.policy.hidden_size, dtype=dtype)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.critic is not None:
            rate = {} if self.value_lr is None else {"lr": self.value_lr}
            groups.append({"params": list(self.critic.parameters()), **rate})
        return groups


class _WithValues:
    """The policy and its critic in one forward, for the notes of a round."""

    def __init__(self, policy: Policy, critic: ScalarHead) -> None:
        self.policy, self.critic = policy, critic

    def token_logps(self, tokens: FlatTokens, *, stats: Any = ()) -> TokenStats:
        out = self.policy.token_logps(tokens, stats=(*stats, "hidden"))
        assert out.hidden is not None
        return TokenStats(logps=out.logps, values=self.critic(out.hidden))


def _explained(values: Tensor, returns: Tensor) -> float:
    """1 - Var(return - value) / Var(return); 0 when the returns do not vary."""
    if len(returns) < 2 or float(returns.var()) == 0:
        return 0.0
    return 1 - float((returns - values).var() / returns.var())

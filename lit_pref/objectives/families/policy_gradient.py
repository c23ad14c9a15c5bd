"""Objectives that weigh responses by advantages. ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.policy_gradient import k3_kl, token_weights
from lit_pref.functional.segments import suffix_sum
from lit_pref.objectives.base import ObjectiveModule, SharedArgs
from lit_pref.objectives.checks import choice, within
from lit_pref.objectives.returned import checked_losses
from lit_pref.transfer import sent
from lit_pref.types import Batch, FlatTokens, Needs, Policy, Refusal, Round, TokenStats, View

__all__ = ["Denominator", "KLIn", "PolicyGradientArgs", "PolicyGradientModule"]

Denominator = Literal["responses", "tokens", "response_mean", "constant"]
KLIn = Literal["reward", "reward_to_go", "loss"]


class PolicyGradientArgs(SharedArgs, total=False):
    """Keyword arguments of every policy-gradient objective; see ``PolicyGradientModule``."""

    kl_coef: float
    kl_in: KLIn
    entropy_coef: float
    denominator: Denominator
    max_tokens: int | None


class PolicyGradientModule(ObjectiveModule):
    """Raises or lowers the log-prob of responses by their advantage.

    A subclass overrides ``advantages`` (once per round) and ``token_loss``.

    Args:
        policy: the model to train.
        kl_coef: weight of the KL penalty to the reference; 0 needs no reference.
        kl_in: where the penalty enters. ``reward``: the log-ratio of the whole response is taken
            off its reward; ``reward_to_go``: each token's advantage loses the log-ratios from it
            on; ``loss``: the k3 estimate of each token is added to the loss. The first two use
            the policy at the start of the round.
        entropy_coef: weight of the entropy of each token's distribution, which the loss rewards.
        denominator: what token losses are divided by: ``responses`` (sum over tokens, mean over
            responses), ``tokens`` (mean over all tokens of the batch), ``response_mean`` (mean
            over each response, then over responses) or ``constant`` (sum over tokens divided by
            ``max_tokens``, mean over responses).
        max_tokens: of ``constant``; the sampler's limit.
        **shared: see ``ObjectiveModule``.
    """

    family: ClassVar[str] = "policy gradient"
    needs = Needs(rewards=True, fresh=True)
    negative_gradient = True
    whole_prompts = False
    uses_old_logps: bool = False
    """Whether ``token_loss`` reads the log-probs of the policy at the start of the round."""

    def __init__(
        self,
        policy: Policy,
        *,
        kl_coef: float = 0.0,
        kl_in: KLIn = "reward",
        entropy_coef: float = 0.0,
        denominator: Denominator = "responses",
        max_tokens: int | None = None,
        **shared: Unpack[SharedArgs],
    ) -> None:
        choice("kl_in", kl_in, ("reward", "reward_to_go", "loss"))
        choice("denominator", denominator, ("responses", "tokens", "response_mean", "constant"))
        inf = float("inf")
        kl_coef = within("kl_coef", kl_coef, 0, inf, ends="[)", what="the weight of the KL penalty")
        entropy_coef = within(
            "entropy_coef", entropy_coef, 0, inf, ends="[)", what="the weight of the entropy"
        )
        if denominator == "constant" and (max_tokens is None or max_tokens < 1):
            raise Refusal(
                "objective.denominator=constant needs objective.max_tokens of at least 1, got "
                f"{max_tokens}; give the length limit, the same as sampler.max_new_tokens"
            )
        super().__init__(policy, **shared)
        if kl_coef > 0 and self.reference is None:
            raise Refusal(
                f"objective.kl_coef={kl_coef:g} needs a reference model; use reference=frozen, "
                "or objective.kl_coef=0"
            )
        self.kl_coef, self.kl_in = kl_coef, kl_in
        self.entropy_coef = entropy_coef
        self.denominator: Denominator = denominator
        self.max_tokens = max_tokens

    @abstractmethod
    def advantages(
        self, rewards: Tensor, group: Tensor, count: int, *, weight: Tensor | None = None
    ) -> Tensor:
        """Advantage of each response of a round.

        Args:
            rewards: [B] float64 rewards, a penalty of ``kl_in=reward`` included.
            group: [B] index of each response's group.
            count: number of groups.
            weight: [B] how often each response counts (None: once).
        """

    @abstractmethod
    def token_loss(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, tokens: FlatTokens
    ) -> Tensor:
        """Loss of each response token.

        Args:
            logps: [T] log-probs under the policy.
            old_logps: [T] at the start of the round; the detached present ones if they are equal.
            advantages: [T] advantage of each token.
            tokens: what the T tokens are (``tokens.owner()``, ``tokens.lengths``).

        Returns:
            [T] losses.
        """

    # ------------------------------------------------------------------ the view

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        return [[g.weight != 0 and len(r.ids) > 0 for r in g.responses] for g in round.groups]

    def annotations(self, round: Round) -> dict[str, str]:
        notes: dict[str, str] = {}
        if self.kl_coef > 0:
            notes["ref_logps"] = "reference"
        penalised = self.kl_coef > 0 and self.kl_in != "loss"
        if penalised or (self.uses_old_logps and not round.strict):
            notes["old_logps"] = "policy"
        return notes

    def rewards(self, round: Round) -> Tensor:
        """[B] rewards of the kept responses, float64."""
        return torch.tensor([float(r.reward) for r in round.kept()], dtype=torch.float64)  # type: ignore[arg-type]

    def log_ratio(self, round: Round) -> Tensor:
        """[T] log-ratio to the reference at the start of the round, float64."""
        notes = round.notes.token
        return (notes["old_logps"] - notes["ref_logps"]).double()

    def penalty_weight(self) -> float:
        """Weight of the KL penalty that the round's rewards or advantages carry."""
        return self.kl_coef

    def penalised_rewards(self, round: Round) -> Tensor:
        """[B] rewards, less the penalty of ``kl_in=reward``, float64."""
        rewards = self.rewards(round)
        if self.kl_coef > 0 and self.kl_in == "reward":
            kl = self.response_sums(self.log_ratio(round), round.tokens())
            rewards = rewards - self.penalty_weight() * kl
        return rewards

    def response_columns(self, round: Round) -> dict[str, Tensor]:
        """[B] what every loss of the family reads of a response."""
        weight = torch.tensor([round.groups[g].weight for g in round.group_index()])
        lengths = torch.tensor([float(len(r.ids)) for r in round.kept()])
        return {
            "weight": weight,
            "reward": self.rewards(round).float(),
            "counted_tokens": weight * lengths,
        }

    def view(self, round: Round, *, seed: int) -> View:
        tokens = round.tokens()
        group = torch.tensor(round.group_index(), dtype=torch.long)
        columns = self.response_columns(round)
        weight = columns["weight"]
        advantages = self.advantages(
            self.penalised_rewards(round), group, len(round.groups), weight=weight
        )
        view = View(response={"advantage": advantages.float(), **columns})
        if self.kl_coef > 0 and self.kl_in == "reward_to_go":
            to_go = suffix_sum(self.log_ratio(round), tokens.lengths)
            per_token = advantages[tokens.owner()] - self.penalty_weight() * to_go
            view.token["advantage"] = self.scale_tokens(
                per_token, weight=weight[tokens.owner()]
            ).float()
        return view

    def scale_tokens(self, advantages: Tensor, *, weight: Tensor) -> Tensor:
        """[T] advantages of all tokens of a round, scaled; as they are by default.

        ``weight`` [T] says how often each of them counts.
        """
        return advantages

    # ------------------------------------------------------------------ the loss

    def token_stats(self) -> Iterable[str]:
        return ("entropy",) if self.entropy_coef > 0 else ()

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        return self.policy_loss(stats, batch)

    def policy_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        """The loss without a critic's, divided by the counts of the whole batch."""
        tokens, logps, view = batch.tokens, stats.logps, batch.view
        owner = tokens.owner()
        old = batch.notes.token.get("old_logps")
        old = logps.detach() if old is None else old.to(logps)
        advantage = view.token.get("advantage")
        if advantage is None:
            advantage = view.response["advantage"][owner]
        losses = checked_losses(
            self.token_loss(logps, old, advantage.to(logps), tokens),
            len(logps),
            method=f"{type(self).__name__}.token_loss",
            per="response token",
        )
        weight = view.response["weight"].to(logps)
        self._track(stats, batch, advantage, weight[owner])
        if self.kl_coef > 0 and self.kl_in == "loss":
            losses = losses + self.kl_coef * k3_kl(logps, batch.notes.token["ref_logps"].to(logps))
        if stats.entropy is not None:
            losses = losses - self.entropy_coef * stats.entropy
        lengths = sent(tokens.lengths, logps.device)
        shares = token_weights(
            owner, lengths, weight, denominator=self.denominator, constant=self.max_tokens
        )
        count = "counted_tokens" if self.denominator == "tokens" else "weight"
        return (losses * shares).sum() / batch.counts[f"response/{count}"]

    def _track(self, stats: TokenStats, batch: Batch, advantage: Tensor, weight: Tensor) -> None:
        items = {"advantages/mean": advantage, "advantages/magnitude": advantage.abs()}
        if stats.entropy is not None:
            items["entropy"] = stats.entropy
        self.window.add_all(items, weight)
        ref = batch.notes.token.get("ref_logps")
        if ref is not None:
            sums = self.response_sums(stats.logps.detach() - ref.to(stats.logps), batch.tokens)
            self.window.add("kl", sums, batch.view.response["weight"])

    def track_ratio(self, ratio: Tensor, low: float | None, high: float | None) -> None:
        """Log the mean ratio and the shares of tokens below and above the clip range."""
        ratio = ratio.detach()
        below = torch.zeros_like(ratio) if low is None else (ratio < 1 - low).to(ratio)
        above = torch.zeros_like(ratio) if high is None else (ratio > 1 + high).to(ratio)
        items = {"ratio/mean": ratio, "clip_ratio/low": below, "clip_ratio/high": above}
        self.window.add_all({**items, "clip_ratio/region": below + above})

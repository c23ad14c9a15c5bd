"""Objectives that weigh responses by advantages. ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.objectives.base import ObjectiveModule, SharedArgs
from lit_pref.types import Batch, Needs, Policy, Refusal, Round, TokenStats, View

__all__ = ["PolicyGradientArgs", "PolicyGradientModule"]


class PolicyGradientArgs(SharedArgs, total=False):
    """Keyword arguments of every policy-gradient objective; see ``PolicyGradientModule``."""

    kl_coef: float


class PolicyGradientModule(ObjectiveModule):
    """Raises or lowers the log-prob of responses by their advantage.

    A subclass overrides ``advantages`` (once per round) and ``token_loss``.

    Args:
        policy: the model to train.
        kl_coef: weight of the KL penalty to the reference that is taken off the reward of each
            response: ``r - kl_coef * (logp - ref_logp)``, with the log-probs of the policy at the
            start of the round. 0 needs no reference.
        **shared: see ``ObjectiveModule``.
    """

    family: ClassVar[str] = "policy gradient"
    needs = Needs(rewards=True, fresh=True)
    negative_gradient = True
    whole_prompts = False

    def __init__(
        self, policy: Policy, *, kl_coef: float = 0.0, **shared: Unpack[SharedArgs]
    ) -> None:
        if kl_coef < 0:
            raise Refusal(f"objective.kl_coef must be 0 or larger, got {kl_coef}")
        super().__init__(policy, **shared)
        if kl_coef > 0 and self.reference is None:
            raise Refusal(
                f"objective.kl_coef={kl_coef} needs a reference model; use reference=frozen, "
                "or objective.kl_coef=0"
            )
        self.kl_coef = float(kl_coef)

    @abstractmethod
    def advantages(self, rewards: Tensor, group: Tensor, count: int) -> Tensor:
        """Advantage of each response of a round.

        Args:
            rewards: [B] rewards, KL penalty included.
            group: [B] index of each response's group.
            count: number of groups.
        """

    @abstractmethod
    def token_loss(self, logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
        """Loss of each response token, [T] each."""

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        return [[g.weight != 0 and len(r.ids) > 0 for r in g.responses] for g in round.groups]

    def annotations(self, round: Round) -> dict[str, str]:
        notes: dict[str, str] = {}
        if self.kl_coef > 0:
            notes["ref_logps"] = "reference"
        if self.kl_coef > 0 or (self.uses_old_logps and not round.strict):
            notes["old_logps"] = "policy"
        return notes

    uses_old_logps: ClassVar[bool] = False
    """Whether ``token_loss`` reads the log-probs of the policy at the start of the round."""

    def view(self, round: Round, *, seed: int) -> View:
        kept = round.kept()
        rewards = torch.tensor([float(r.reward) for r in kept], dtype=torch.float64)  # type: ignore[arg-type]
        group = torch.tensor(round.group_index(), dtype=torch.long)
        weight = torch.tensor([round.groups[g].weight for g in group.tolist()])
        if self.kl_coef > 0:
            log_ratio = round.notes.token["old_logps"] - round.notes.token["ref_logps"]
            rewards = (
                rewards - self.kl_coef * self.response_sums(log_ratio, round.tokens()).double()
            )
        advantages = self.advantages(rewards, group, len(round.groups)).float()
        return View(response={"advantage": advantages, "weight": weight, "reward": rewards.float()})

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        owner = batch.tokens.owner()
        logps = stats.logps
        old = batch.notes.token.get("old_logps")
        old = logps.detach() if old is None else old
        advantage = batch.view.response["advantage"]
        weight = batch.view.response["weight"]
        losses = self.token_loss(logps, old, advantage[owner])
        self.window.add("advantages/mean", advantage, weight)
        return (losses * weight[owner]).sum() / batch.counts["response/weight"]

"""Objectives that imitate responses, each with a weight. ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.pairing import order_scores
from lit_pref.objectives.base import ObjectiveModule, SharedArgs
from lit_pref.objectives.checks import choice
from lit_pref.transfer import sent
from lit_pref.types import Batch, Group, Needs, Policy, Round, TokenStats, View

__all__ = ["Denominator", "SupervisedArgs", "SupervisedModule", "group_scores"]

Denominator = Literal["tokens", "responses"]
Weights = list[list[float | None]]


class SupervisedArgs(SharedArgs, total=False):
    """Keyword arguments of every supervised objective; see ``SupervisedModule``."""

    denominator: Denominator


class SupervisedModule(ObjectiveModule):
    r"""Weighted maximum likelihood: override ``weights``.

    .. math:: -\frac{1}{Z}\sum_i w_i \sum_t \log\pi(y_{i,t})

    Args:
        policy: the model to train.
        denominator: Z counts what is imitated in the whole batch, whatever the weights:
            its ``tokens`` (long responses count more) or its ``responses``.
        **shared: see ``ObjectiveModule``.
    """

    family: ClassVar[str] = "supervised"
    needs = Needs()
    negative_gradient = False
    whole_prompts = False

    def __init__(
        self, policy: Policy, *, denominator: Denominator = "tokens", **shared: Unpack[SharedArgs]
    ) -> None:
        choice("denominator", denominator, ("tokens", "responses"))
        super().__init__(policy, **shared)
        self.denominator: Denominator = denominator

    @abstractmethod
    def weights(self, round: Round, *, seed: int) -> Weights:
        """Weight of each response of each group, once per round.

        Args:
            round: the groups.
            seed: of random draws, by coordinates.

        Returns:
            For each group a weight for each of its responses; None leaves a response out.
        """

    # ------------------------------------------------------------------ the view

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        keep = []
        for group, weights in zip(round.groups, self.weights(round, seed=seed), strict=True):
            usable = [len(r.ids) > 0 and group.weight != 0 for r in group.responses]
            keep.append([u and w is not None for u, w in zip(usable, weights, strict=True)])
        return keep

    def view(self, round: Round, *, seed: int) -> View:
        weights = self.weights(round, seed=seed)
        share, coefficient = [], []
        for group, keep, row in zip(round.groups, round.keep, weights, strict=True):
            for used, weight in zip(keep, row, strict=True):
                if used:
                    share.append(group.weight)
                    coefficient.append(0.0 if weight is None else weight)
        round.counts["data/groups_without_target"] = float(sum(not any(k) for k in round.keep))
        return View(response=self.columns(round, torch.tensor(share), torch.tensor(coefficient)))

    def columns(self, round: Round, weight: Tensor, coefficient: Tensor) -> dict[str, Tensor]:
        """What the loss reads of each kept response.

        Args:
            round: with ``keep`` in place.
            weight: [B] how often a response counts, in the loss and in Z; 0 for not at all.
            coefficient: [B] any number that multiplies its loss and is not counted in Z.
        """
        lengths = torch.tensor([float(len(r.ids)) for r in round.kept()])
        return {"weight": weight, "coefficient": coefficient, "counted_tokens": weight * lengths}

    # ------------------------------------------------------------------ the loss

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        logps = self.response_sums(stats.logps, batch.tokens)
        weight = batch.view.response["weight"].to(logps)
        coefficient = batch.view.response["coefficient"].to(logps)
        lengths = sent(batch.tokens.lengths, logps.device, logps.dtype)
        self.window.add_all({"logps/mean": logps, "weights/mean": coefficient}, weight)
        imitated = logps.detach() * weight
        self.window.add_total("nll", -imitated.sum(), (lengths * weight).sum())
        return -(logps * coefficient * weight).sum() / self.normaliser(batch)

    def normaliser(self, batch: Batch) -> float:
        """Z: counts over the whole batch and all processes."""
        if self.denominator == "tokens":
            return batch.counts["response/counted_tokens"]
        return batch.counts["response/weight"]


def group_scores(group: Group) -> Sequence[float] | None:
    """What orders the responses of a group, higher is better; None where nothing does."""
    return order_scores(
        [r.rank for r in group.responses],
        [r.reward for r in group.responses],
        [r.label for r in group.responses],
    )

"""Objectives on single responses that are desirable or not. ``B`` responses."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lit_pref.functional.unpaired import group_labels
from lit_pref.objectives.base import ObjectiveModule
from lit_pref.objectives.returned import losses_and_metrics
from lit_pref.types import Batch, Group, Needs, Round, TokenStats, View

__all__ = ["UnpairedModule"]


class UnpairedModule(ObjectiveModule):
    """Learns from labels of single responses: override ``response_loss``.

    Labels come from groups as ``functional.unpaired.group_labels`` says. Unlabelled and empty
    responses are left out.

    These losses couple the batch: ``response_loss`` sees all responses of the batch over all
    processes at once, so it may use their means.

    Args:
        *args: see ``ObjectiveModule``.
    """

    family: ClassVar[str] = "unpaired"
    needs = Needs(reference=True)
    negative_gradient = True
    couples_batch = True
    whole_prompts = False

    @abstractmethod
    def response_loss(
        self, log_ratio: Tensor, desirable: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each response; the objective is their mean over the batch.

        Args:
            log_ratio: [B] log-prob over the reference's, in nats.
            desirable: [B] booleans.
            batch: the batch over all processes, with what ``couple`` noted.

        Returns:
            [B] losses; and tensors to log: ``rewards`` ([B] implicit rewards) and ``threshold``
            (scalar: what they are compared with) give the usual metrics, other names are logged
            as they are.
        """

    # ------------------------------------------------------------------ the view

    def labels(self, group: Group) -> list[bool | None]:
        """Labels of a group's responses; None leaves one out."""
        if group.weight == 0:
            return [None] * len(group.responses)
        found = group_labels(
            [r.label for r in group.responses],
            [r.rank for r in group.responses],
            [r.reward for r in group.responses],
        )
        return [v if r.ids else None for v, r in zip(found, group.responses, strict=True)]

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        return [[v is not None for v in self.labels(group)] for group in round.groups]

    def view(self, round: Round, *, seed: int) -> View:
        weight: list[float] = []
        desirable: list[float] = []
        for group in round.groups:
            for label in self.labels(group):
                if label is not None:
                    weight.append(group.weight)
                    desirable.append(float(label))
        round.counts["data/groups_without_label"] = float(sum(not any(k) for k in round.keep))
        round.counts["data/desirable_share"] = sum(desirable) / max(len(desirable), 1)
        return View(response={"weight": torch.tensor(weight), "desirable": torch.tensor(desirable)})

    # ------------------------------------------------------------------ the loss

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        logps = self.response_sums(stats.logps, batch.tokens)
        ref = self.response_sums(batch.notes.token["ref_logps"].to(logps), batch.tokens)
        weight = batch.view.response["weight"].to(logps)
        desirable = batch.view.response["desirable"] > 0
        losses, metrics = losses_and_metrics(
            self.response_loss(logps - ref, desirable, batch),
            len(weight),
            method=f"{type(self).__name__}.response_loss",
            per="response",
        )
        self._log(logps, desirable, weight, metrics)
        return (losses * weight).sum() / batch.counts["response/weight"]

    def _log(
        self, logps: Tensor, desirable: Tensor, weight: Tensor, metrics: dict[str, Tensor]
    ) -> None:
        rewards, threshold = metrics.pop("rewards"), metrics.pop("threshold")
        up, down = weight * desirable, weight * ~desirable
        self.window.add("logps/chosen", logps, up)
        self.window.add("logps/rejected", logps, down)
        self.window.add("rewards/chosen", rewards, up)
        self.window.add("rewards/rejected", rewards, down)
        self.window.add("rewards/accuracies", (rewards > threshold) == desirable, weight)
        for name, value in metrics.items():
            self.window.add(name, value)

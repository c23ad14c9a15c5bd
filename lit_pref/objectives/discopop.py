"""Discovered preference optimisation (arXiv 2406.08414)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import discopop_loss
from lit_pref.objectives.checks import positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["DiscoPOP"]


class DiscoPOP(PairwiseModule):
    """The log-ratio modulated loss.

    The loss is ``functional.preference.discopop_loss``.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        temperature: of the modulation, larger than 0.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2406.08414"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.05,
        temperature: float = 0.05,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.05)
        self.temperature = positive("temperature", temperature, usual=0.05)

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = chosen.log_ratio - rejected.log_ratio
        losses = discopop_loss(logits, beta=self.beta, temperature=self.temperature)
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

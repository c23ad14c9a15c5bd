"""Alignment by optimal transport (arXiv 2406.05882)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import aot_loss
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy, Refusal, Round, View

__all__ = ["AOT"]


class AOT(PairwiseModule):
    """Margins compared rank by rank over the whole batch.

    The loss is ``functional.preference_reference.aot_loss``.

    Args:
        policy: the model to train.
        beta: scale of the log-ratios, larger than 0.
        label_smoothing: as in DPO, in [0, 0.5).
        compare: ``margins``: the policy margin of each pair against that of the reference
            (paired form);
            ``responses``: log-ratios of chosen against rejected responses (unpaired).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, no reference, or groups of different weights.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    couples_batch = True
    paper = "2406.05882"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.01,
        label_smoothing: float = 0.0,
        compare: Literal["margins", "responses"] = "margins",
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.01)
        self.label_smoothing = within(
            "label_smoothing",
            label_smoothing,
            0,
            0.5,
            ends="[)",
            what="the probability that a label is wrong",
        )
        self.compare = compare
        choice("compare", compare, ("margins", "responses"))
        if self.pair_mean != "pooled":
            raise Refusal(
                "objective.pair_mean=group cannot go with aot: ranks are over all pairs of the "
                "batch, whatever their group; use objective.pair_mean=pooled"
            )

    def view(self, round: Round, *, seed: int) -> View:
        view = super().view(round, seed=seed)
        weights = sorted(set(view.pair["weight"].tolist()))
        if len(weights) > 1:
            raise Refusal(
                "objective=aot compares pairs rank by rank, so none of them can count more than "
                f"another, but the groups have weights from {weights[0]:g} to {weights[-1]:g}; "
                "take the column 'weight' out of the file, or use another objective on pairs"
            )
        return view

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert chosen.ref_logps is not None and rejected.ref_logps is not None
        if self.compare == "margins":
            better = chosen.logps - rejected.logps
            worse = chosen.ref_logps - rejected.ref_logps
        else:
            better, worse = chosen.log_ratio, rejected.log_ratio
        losses = aot_loss(better, worse, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

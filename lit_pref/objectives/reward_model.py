"""Reward models from preferences (arXiv 2203.02155)."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.score import reward_model_loss
from lit_pref.objectives.checks import within
from lit_pref.objectives.families.paired import PairwiseArgs
from lit_pref.objectives.families.score import ScoreModule
from lit_pref.policies.heads import ScalarHead
from lit_pref.types import Needs, Policy

__all__ = ["RewardModel"]


class RewardModel(ScoreModule):
    """A Bradley-Terry model of preferences.

    The loss is ``functional.score.reward_model_loss``. The export is a reward for other runs:
    ``reward=learned reward.path=<run directory>``.

    Args:
        policy: the model whose hidden states are read; all of it is trained.
        head: from hidden state to score.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        margin_coef: weight of the preference margin of the data, where it has one; TRL's is 1.
        centering: weight of the squared sum of both scores; TRL's
            ``center_rewards_coefficient``, 0.01 where it is used.
        **shared: see ``PairedModule``; ``pair_mean="group"`` weighs all pairs of a prompt like
            one, as published.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2, policy=False)
    negative_gradient = False
    paper = "2203.02155"

    def __init__(
        self,
        policy: Policy,
        *,
        head: ScalarHead | None = None,
        label_smoothing: float = 0.0,
        margin_coef: float = 1.0,
        centering: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, head=head, **shared)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )
        self.margin_coef = within("margin_coef", margin_coef, 0, math.inf, what="a weight")
        self.centering = within("centering", centering, 0, math.inf, what="a weight, 0 for none")

    def score_loss(self, chosen: Tensor, rejected: Tensor, *, margin: Tensor) -> Tensor:
        return reward_model_loss(
            chosen,
            rejected,
            margin=self.margin_coef * margin,
            label_smoothing=self.label_smoothing,
            centering=self.centering,
        )

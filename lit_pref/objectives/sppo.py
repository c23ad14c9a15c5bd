"""Self-play preference optimisation (arXiv 2405.00675)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference_reference import sppo_loss
from lit_pref.objectives.checks import positive
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy

__all__ = ["SPPO"]


class SPPO(PairwiseModule):
    """Regression of both log-ratios on half the step size.

    The loss is ``functional.preference_reference.sppo_loss``. In the paper the reference is the
    policy of the round before.

    Args:
        policy: the model to train.
        eta: step size of the multiplicative update, larger than 0; targets are eta / 2 nats.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2405.00675"

    def __init__(
        self,
        policy: Policy,
        *,
        eta: float = 1000.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.eta = positive("eta", eta, usual=1000.0)

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = sppo_loss(chosen.log_ratio, rejected.log_ratio, eta=self.eta)
        return losses, reward_metrics(chosen.log_ratio / self.eta, rejected.log_ratio / self.eta)

"""Direct preference optimisation (arXiv 2305.18290)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import dpo_loss
from lit_pref.objectives.families.pairwise import PairwiseArgs, PairwiseModule, Side
from lit_pref.types import Needs, Policy, Refusal

__all__ = ["DPO"]


class DPO(PairwiseModule):
    """DPO on sequence log-probs; the loss is ``functional.preference.dpo_loss``.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5) (conservative DPO).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2305.18290"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        if not beta > 0:
            raise Refusal(
                f"objective.beta must be larger than 0, got {beta}; DPO's usual value is 0.1"
            )
        if not 0 <= label_smoothing < 0.5:
            raise Refusal(
                f"objective.label_smoothing must be in [0, 0.5), got {label_smoothing}; it is the "
                "probability that a label is wrong"
            )
        super().__init__(policy, **shared)
        self.beta = float(beta)
        self.label_smoothing = float(label_smoothing)

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = chosen.log_ratio - rejected.log_ratio
        losses = dpo_loss(logits, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses, {
            "rewards/chosen": self.beta * chosen.log_ratio,
            "rewards/rejected": self.beta * rejected.log_ratio,
            "rewards/margins": self.beta * logits,
            "rewards/accuracies": (logits > 0).to(logits),
        }

"""Trust-region DPO: the reference follows the policy (arXiv 2404.09656)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import dpo_loss
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.objectives.forward import EngineForward
from lit_pref.policies.reference import MovingReference
from lit_pref.types import Forward, Needs, Policy, Round

__all__ = ["TRDPO"]


class TRDPO(PairwiseModule):
    """DPO against a reference that moves towards the policy at round starts.

    The loss is ``functional.preference.dpo_loss`` with the log-probs of ``moving``. The frozen
    ``reference``, if there is one, is only what KL is measured to.

    Args:
        policy: the model to train.
        moving: the reference that moves; mixes and interval are its own. Its weights are
            checkpointed. With one round (the default of ``data=offline``) it never moves.
        beta: strength of the pull towards it, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    shards = False
    paper = "2404.09656"

    def __init__(
        self,
        policy: Policy,
        *,
        moving: MovingReference | None = None,
        beta: float = 0.05,
        label_smoothing: float = 0.0,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.moving = MovingReference() if moving is None else moving
        self.beta = positive("beta", beta, usual=0.05)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = chosen.log_ratio - rejected.log_ratio
        losses = dpo_loss(logits, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses, reward_metrics(self.beta * chosen.log_ratio, self.beta * rejected.log_ratio)

    # ------------------------------------------------------------------ the moving reference

    def annotations(self, round: Round) -> dict[str, str]:
        return {"ref_logps": "moving"}

    def forward_pass(self, micro_batch_tokens: int | None) -> Forward:
        forward = super().forward_pass(micro_batch_tokens)
        assert isinstance(forward, EngineForward)
        models = {**forward.models, "moving": self.moving}
        return EngineForward(models, forward.micro_batch_tokens, forward.device, forward.context)

    def begin_round(self, index: int) -> None:
        super().begin_round(index)
        self.moving.advance(self.policy, index)

    def configure_model(self) -> None:
        super().configure_model()
        self.moving.prepare(self.policy)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.moving.to(self.device)

    def objective_state(self) -> dict[str, Tensor]:
        return self.moving.state()

    def load_objective_state(self, state: dict[str, Any]) -> None:
        self.moving.load(state)

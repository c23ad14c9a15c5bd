"""How much of a step pushes log-probs up, how much pushes them down, and whether they agree."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from lit_pref.policies.sharding import is_sharded
from lit_pref.types import Refusal

__all__ = ["GradientParts"]

log = logging.getLogger(__name__)


class GradientParts(L.Callback):
    """Norms of the positive and the negative part of the gradient and their cosine.

    The positive part comes from the response tokens whose log-prob the loss raises (dLoss/dlogp
    below 0), the negative part from those that it lowers, ``objective.negative_weight`` applied.
    Before every ``every_n_steps``-th step the batch goes forward and backward once more, twice
    backward; two gradients are held meanwhile. Nothing of the training step changes. A sharded
    policy (strategy=fsdp2) is not measured.

    Args:
        every_n_steps: optimizer steps between two measurements.
    """

    def __init__(self, *, every_n_steps: int = 50) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise Refusal(
                f"callbacks.gradient_parts.every_n_steps must be at least 1, got {every_n_steps!r}"
            )
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if is_sharded(pl_module.policy) and trainer.is_global_zero:
            log.warning("gradient parts are not measured: the policy is sharded")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.global_step % self.every_n_steps == 0
        if not due or is_sharded(pl_module.policy) or batch.counts["responses"] == 0:
            return
        with trainer.precision_plugin.forward_context():
            parts = pl_module.gradient_parts(batch)
        for name, (total, count) in parts.items():
            pl_module.window.add_total(f"gradient/{name}", total, count)

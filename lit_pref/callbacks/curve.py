"""Learning curves at every few optimizer steps, within passes too: what figures are drawn from."""

from __future__ import annotations

from typing import Any

import lightning as L

from lit_pref.types import Refusal

__all__ = ["Curve"]


class Curve(L.Callback):
    """Measures before the first step, every ``every_n_steps`` steps, and after the last.

    A task that knows its policy exactly (``Task.exact``, the 1-D bandit) is asked for
    expectations; any other is sampled as in validation (fixed random numbers, plain sampling, the
    true reward). Columns of ``metrics.csv`` are ``curve/reward``, ``curve/kl`` in nats, and
    whatever else the task's ``exact`` names. Unlike the validation of rounds it sees an offline
    run, whose one round is all of the training.

    Args:
        every_n_steps: optimizer steps between two measurements.
        responses: responses per validation prompt, where sampling is needed.
    """

    def __init__(self, *, every_n_steps: int = 10, responses: int = 1) -> None:
        if every_n_steps < 1 or responses < 1:
            raise Refusal(
                "callbacks.curve: every_n_steps and responses must be at least 1, got "
                f"{every_n_steps} and {responses}"
            )
        self.every_n_steps = every_n_steps
        self.responses = responses
        self._last = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, data = trainer.global_step, trainer.datamodule  # type: ignore[attr-defined]
        if step % self.every_n_steps == 0 or step == data.total_steps:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step == self._last or not module.needs.policy:
            return
        self._last = trainer.global_step
        exact = getattr(data.task, "exact", None)
        if exact is not None:
            values = exact(module.policy)
        else:
            prompts = data.validation_prompts
            measured = data.measure(module, prompts, responses=self.responses)
            values = {name: value for name, (value, _) in measured.metrics().items()}
        columns = {f"curve/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**data.progress(), **columns}, step=trainer.global_step)

"""Validation by sampling: true reward, KL to the reference, lengths, on fixed random numbers."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch

from lit_pref.callbacks.occasion import Instrument, Occasion, ReferenceSamples
from lit_pref.data.evaluation import Measured
from lit_pref.types import Group

__all__ = ["Evaluation", "evaluate"]

log = logging.getLogger(__name__)


def evaluate(trainer: L.Trainer, module: Any, *, responses: int = 1) -> tuple[dict, list[Group]]:
    """Sample validation prompts and measure.

    The same uniform numbers are used every time and in every run, whatever its seed, and plain
    sampling (temperature 1, all tokens), so that curves are comparable and KL is unbiased.
    A reward model does not sample: its ``val/accuracy`` is that on the groups that its data
    module holds out.

    Args:
        trainer: with one of lit_pref's DataModules.
        module: the objective.
        responses: responses per validation prompt.

    Returns:
        Metrics by name (``val/reward``, ``val/kl`` in nats per sequence, ``val/entropy`` in nats
        per token, ``val/mean_length`` in tokens, ``val/finished``), and the groups.
    """
    metrics, measured = _evaluate(trainer, module, responses)
    return metrics, [] if measured is None else measured.groups


def _evaluate(
    trainer: L.Trainer, module: Any, responses: int
) -> tuple[dict[str, float], Measured | None]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not module.needs.policy:  # sampling says nothing about a reward model
        return module.measure_groups(data.held_out_groups), None
    measured = data.measure(module, data.validation_prompts, responses=responses)
    return {f"val/{k}": v for k, (v, _) in measured.metrics().items()}, measured


class Evaluation(L.Callback):
    """Evaluates before the first step, every ``every_n_rounds`` rounds, and at the end.

    In a run of one round (a whole stored set) passes are counted instead of rounds.

    Callbacks that are instruments (``callbacks.occasion.Instrument``) measure at the same times;
    what they say is logged in the same row, and may be ``checkpoint.monitor``.

    Args:
        every_n_rounds: 0 evaluates at start and end only.
        responses: responses per validation prompt.
    """

    def __init__(self, *, every_n_rounds: int = 1, responses: int = 1) -> None:
        self.every_n_rounds = every_n_rounds
        self.responses = responses
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.last_step = -1
        self.reference_samples: ReferenceSamples | None = None
        """Kept while the reference stands still: they cost queries of the reward once."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0 and self.last_step < 0:
            self._run(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # max_steps ends the run within a pass: measure here, where the last checkpoint is saved
        if trainer.global_step >= data.total_steps and not trainer.is_last_batch:
            self._run(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        passes = trainer.current_epoch + 1
        rounds, rest = divmod(passes, 1 if data.rounds == 1 else data.reuse)
        over = trainer.global_step >= data.total_steps
        due = rest == 0 and self.every_n_rounds > 0 and rounds % self.every_n_rounds == 0
        if (due or over) and self.last_step != trainer.global_step:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.last_step != trainer.global_step and trainer.global_step > 0:
            self._run(trainer, pl_module)

    def _run(self, trainer: L.Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        metrics, measured = _evaluate(trainer, module, self.responses)
        groups = [] if measured is None else measured.groups
        occasion = Occasion(trainer, module, measured, kept=self.reference_samples, metrics=metrics)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Instrument):
                metrics.update(callback.measure(occasion))
        if occasion.has_reference and module.reference.fingerprint is not None:
            self.reference_samples = occasion.kept
        self.first = self.first or metrics
        self.last, self.last_step = metrics, trainer.global_step
        for name, value in metrics.items():
            trainer.callback_metrics[name] = torch.tensor(value)
        for logger in trainer.loggers:
            logger.log_metrics({**data.progress(), **metrics}, step=trainer.global_step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            told = getattr(callback, "on_evaluation", None)
            if told is not None:
                told(trainer, metrics, groups)

    def state_dict(self) -> dict[str, Any]:
        samples = self.reference_samples
        return {
            "first": self.first,
            "last": self.last,
            "last_step": self.last_step,
            "reference_samples": None if samples is None else samples.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.last = dict(state_dict["first"]), dict(state_dict["last"])
        self.last_step = state_dict["last_step"]
        samples = state_dict.get("reference_samples")
        self.reference_samples = None if samples is None else ReferenceSamples.from_state(samples)

"""A progress bar for the whole run (steps) and one for sampling; log lines without a terminal."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning as L
from tqdm.auto import tqdm

from lit_pref.callbacks.evaluation import Evaluation
from lit_pref.rewards.base import measuring
from lit_pref.types import Group, Round

__all__ = ["RunProgress"]

log = logging.getLogger(__name__)

_SHOWN = {
    "val/reward": "val_reward", "val/kl": "kl", "loss": "loss", "round/reward": "reward",
    "val/accuracy": "val_accuracy",
}  # fmt: skip


class RunProgress(L.Callback):
    """Shows how far the run is, over all rounds and passes, not per Lightning epoch.

    Args:
        every_seconds: without a terminal, time between two log lines, also while a round is made.
    """

    def __init__(self, *, every_seconds: float = 10.0) -> None:
        self.every_seconds = every_seconds
        self.bar: Any = None
        self.sampling_bar: Any = None
        self._shown: dict[str, float] = {}
        self._spoke = 0.0
        self._round = 0
        self._making, self._since = 0, 0.0
        self._trainer: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer
        if stage == "fit" and trainer.is_global_zero:
            trainer.datamodule.listeners.append(self)  # type: ignore[attr-defined]

    @property
    def _terminal(self) -> bool:
        return sys.stderr.isatty()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        log.info(
            "training: %d steps = %d rounds x %d passes x %d batches",
            data.total_steps,
            data.rounds,
            data.reuse,
            data.batches_per_pass,
        )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation) and pl_module.needs.policy:
                log.info("validation: %s", _validation(callback, data))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.bar = tqdm(
            total=data.total_steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            disable=not self._terminal,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        self._round = batch.index[0]
        self._note(pl_module.latest)
        self.bar.update(1)
        self._speak(trainer)

    def on_evaluation(self, trainer: L.Trainer, metrics: dict, groups: list[Group]) -> None:
        """Called by ``Evaluation``."""
        if trainer.is_global_zero:
            self._note(metrics)
            over = trainer.global_step >= trainer.datamodule.total_steps  # type: ignore[attr-defined]
            self._speak(trainer, now=over or trainer.global_step == 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    # ------------------------------------------------------------------ rounds

    def on_pass_start(self, index: int, number: int) -> None:
        self._making = index

    def on_progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.sampling_bar is None:
            self._since = now
            self.sampling_bar = tqdm(
                total=total,
                desc=stage,
                unit="response",
                leave=False,
                delay=1.0,
                disable=not self._terminal,
            )
        self.sampling_bar.set_description(stage)
        self.sampling_bar.total, self.sampling_bar.n = total, done
        self.sampling_bar.refresh()
        if not self._terminal and now - self._since >= self.every_seconds:
            self._since = now
            log.info("round %d: %s, %d of %d responses", self._making, stage, done, total)

    def on_round(self, round: Round) -> None:
        self._close_sampling()
        rewards = [r.reward for g in round.groups for r in g.responses if r.reward is not None]
        if rewards:
            self._note({"round/reward": sum(rewards) / len(rewards)})

    def on_failed_round(self, index: int, groups: list[Group]) -> None:
        self._close_sampling()

    # ------------------------------------------------------------------ saying it

    def _note(self, metrics: dict[str, float]) -> None:
        self._shown.update({_SHOWN[k]: v for k, v in metrics.items() if k in _SHOWN})
        if self.bar is not None and self._terminal:
            self.bar.set_postfix({k: f"{v:.3g}" for k, v in self._shown.items()}, refresh=False)

    def _speak(self, trainer: Any, *, now: bool = False) -> None:
        if self._terminal or (not now and time.monotonic() - self._spoke < self.every_seconds):
            return
        self._spoke = time.monotonic()
        values = "  ".join(f"{k} {v:.4g}" for k, v in self._shown.items())
        total = trainer.datamodule.total_steps
        log.info("step %d/%d  round %d  %s", trainer.global_step, total, self._round, values)

    def _close_sampling(self) -> None:
        if self.sampling_bar is not None:
            self.sampling_bar.close()
            self.sampling_bar = None

    def _close(self) -> None:
        self._close_sampling()
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _validation(evaluation: Evaluation, data: Any) -> str:
    """What is measured, and when."""
    rewarded = (data.task.true_reward() or measuring(data.reward)) is not None
    files = sorted({p.file for p in data.validation_prompts if p.file})
    where = f" of {files[0]}" if len(files) == 1 else ""
    one, many = ("pass", "passes") if data.rounds == 1 else ("round", "rounds")
    every = evaluation.every_n_rounds
    times = ["before the first step"]
    if every:
        times.append(f"after every {one}" if every == 1 else f"after every {every} {many}")
    return (
        f"{'val_reward and ' if rewarded else ''}kl on {len(data.validation_prompts)} prompts"
        f"{where}, responses to each: {evaluation.responses}, drawn alike each time; "
        f"{', '.join([*times, 'at the end'])}"
    )

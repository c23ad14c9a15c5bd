"""Processor time of training by step, without that of measuring."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

__all__ = ["Clock"]


class Clock:
    """Counts processor seconds from the start of a fit, except while callbacks work.

    Processor time, not wall-clock time: cells run beside each other, on one thread each, and on
    an idle core the two are the same.

    Attributes:
        at: seconds by optimizer step.
    """

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self._made = time.monotonic()
        self._total = 0.0
        self._since: float | None = None

    def watch(self, trainer: L.Trainer) -> None:
        """Count the seconds of a trainer's fit; its callbacks must be complete."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # not declared
        callbacks.insert(0, _Halt(self))
        callbacks.append(_Go(self))

    def go(self) -> None:
        """Count from now on."""
        self._since = time.process_time()

    def halt(self, step: int) -> None:
        """Stop counting; the seconds so far are those of the step."""
        if self._since is not None:
            self._total += time.process_time() - self._since
            self._since = None
        self.at[step] = self._total

    def since_made(self) -> float:
        """Wall-clock seconds since the clock was made."""
        return round(time.monotonic() - self._made, 3)


class _Halt(L.Callback):
    """Before all other callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.halt(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # type: ignore[override]
        self.clock.halt(trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.halt(trainer.global_step)


class _Go(L.Callback):
    """After all other callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.go()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.go()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # type: ignore[override]
        self.clock.go()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.go()

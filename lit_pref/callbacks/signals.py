"""SIGTERM and Ctrl-C: save at the next optimizer step, then stop with 128 + signal."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import lightning as L

from lit_pref.callbacks.checkpoints import Checkpoints

__all__ = ["Interrupted", "StopSignals"]

log = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved.

    Attributes:
        signum: the signal; the process should exit with 128 + it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals(L.Callback):
    """Turns SIGTERM and SIGINT into a saved checkpoint and an ``Interrupted``.

    Lightning's own handling stops in the middle of a step and exits with 0.

    Args:
        checkpoints: what saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.received = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._before.setdefault(signum, signal.getsignal(signum))
            signal.signal(signum, self._note)

    # Lightning installs its own handlers between on_fit_start and on_train_start.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_fit_start(trainer, pl_module)

    def _note(self, signum: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt  # asked twice: stop now, the last checkpoint remains
        self.received = signum
        name = signal.Signals(signum).name
        log.warning("%s: saving after the present step, then stopping (again: at once)", name)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        signum = self.received or 0
        if trainer.world_size > 1:  # any process may have been asked
            import torch

            flag = torch.tensor(signum, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if signum:
            self.checkpoints.save(trainer)
            raise Interrupted(signum)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

"""SIGTERM and Ctrl-C: save at the next optimizer step, then stop with 128 + signal."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_pref.callbacks.checkpoints import Checkpoints
from lit_pref.transfer import sent
from lit_pref.types import Group, Round

__all__ = ["Interrupted", "StopSignals", "StoppedAtOnce", "ignore_signals", "terminable"]

log = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved.

    Attributes:
        signum: the signal; the process should exit with 128 + it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StoppedAtOnce(KeyboardInterrupt):
    """The run was asked to stop where nothing is to be saved, or asked twice.

    Not an ``Exception``: it may come anywhere, and nothing on its way may take it for an error of
    its own.

    Attributes:
        signum: the signal; the process should exit with 128 + it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped at once by {signal.Signals(signum).name}")
        self.signum = signum


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises ``StoppedAtOnce``, as Ctrl-C does by itself: before training and after it."""

    def stop(signum: int, frame: Any) -> None:
        raise StoppedAtOnce(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_signals() -> None:
    """SIGTERM and Ctrl-C do nothing any more: the run is ending, and says how."""
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)


class StopSignals(L.Callback):
    """Turns SIGTERM and SIGINT into a saved checkpoint and an ``Interrupted``.

    Lightning's own handling stops in the middle of a step and exits with 0; with several processes
    it starts a collective from inside the handler, between those of sampling.

    Args:
        checkpoints: what saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._asked: Tensor | None = None  # what the processes said in the step before

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.received = self._asked = None
        if stage == "fit":
            trainer.datamodule.listeners.insert(0, self)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def on_pass_start(self, index: int, number: int) -> None:
        """Lightning installs its own handlers between on_fit_start and the first pass."""
        self._listen()

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """A round in the making is finished first: it would be made again after a resume."""

    def on_round(self, round: Round) -> None:
        """The next step saves."""

    def on_failed_round(self, index: int, groups: list[Group]) -> None:
        """The failure ends the run."""

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._before.setdefault(signum, signal.getsignal(signum))
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: Any) -> None:
        if self.received is not None:  # stop now, the last checkpoint remains
            raise StoppedAtOnce(signum)
        self.received = signum
        name = signal.Signals(signum).name
        log.warning("%s: saving after this step or the next, then stopping (again: at once)", name)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            self._stop(trainer, last=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_last_batch:  # else max_steps has ended the run, which finishes
            self._stop(trainer, last=True)

    def _stop(self, trainer: L.Trainer, *, last: bool) -> None:
        signum = self.received or 0
        if trainer.world_size > 1:  # any process may have been asked
            signum = self._of_all(signum, trainer.strategy, last=last)
        if signum:
            self.checkpoints.save(trainer)
            raise Interrupted(signum)

    def _of_all(self, signum: int, strategy: Any, *, last: bool) -> int:
        """A signal that any process received, the same in each.

        On a GPU it is that of the step before, except in a pass's last step: waiting for the
        present one would keep the host from running ahead.
        """
        flag = sent(signum, strategy.root_device)
        if flag.device.type == "cpu":
            return int(strategy.reduce(flag, reduce_op="max"))
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        before, self._asked = self._asked, None if last else flag
        found = 0 if before is None else int(before)
        return max(found, int(flag)) if last else found

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

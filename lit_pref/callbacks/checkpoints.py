"""Checkpoints that are there whole or not at all: last, the one before it, and the best."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_pref.types import Refusal

__all__ = ["Checkpoints", "WholeFileIO", "newest_checkpoint"]

log = logging.getLogger(__name__)


class WholeFileIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; loads tensors and primitives only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


class Checkpoints(Checkpoint):
    """Saves at every round's end, every n steps, and at the end.

    Args:
        folder: where ``last.ckpt``, ``previous.ckpt`` and ``best.ckpt`` go.
        every_n_steps: also save after every so many optimizer steps.
        monitor: metric of the best checkpoint; None keeps none.
        mode: whether larger (``max``) or smaller (``min``) is better.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_n_steps: int | None = None,
        monitor: str | None = "val/reward",
        mode: str = "max",
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise Refusal(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}")
        if mode not in ("max", "min"):
            raise Refusal(f"checkpoint.mode must be max or min, got {mode!r}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self.best_step = -1
        self._noted: Any = None
        self.keep_previous = True
        """Whether ``last.ckpt`` is good, and becomes ``previous.ckpt`` when the next is saved."""
        self.seconds = 0.0
        """How long the run had been going when the checkpoint it started from was saved."""
        self._started = time.monotonic()

    def resume_from(self, path: Path | None) -> None:
        """Told before the fit which checkpoint of ``folder`` will be loaded (None: none)."""
        self.keep_previous = path is not None and path.name == "last.ckpt"

    def clear(self) -> None:
        """Remove checkpoints of an earlier run in ``folder``: nobody may resume from them."""
        for path in self.folder.glob("*.ckpt"):
            log.warning("%s is of an earlier run in this folder, and is removed", path)
            path.unlink()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._noted = self._measured(trainer)  # of the initial policy, which is not saved
        # The run may have ended after last.ckpt was saved and before best.ckpt was made of it.
        if self.best_step == trainer.global_step and self.keep_previous:
            _link(self.folder / "last.ckpt", self.folder / "best.ckpt", trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last batch of a pass is saved at the epoch's end, where the loops are consistent.
        if not trainer.is_last_batch and (self._due(trainer) or _over(trainer)):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_last_batch:  # max_steps ended the run within a pass: saved there
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        round_over = (trainer.current_epoch + 1) % data.reuse == 0
        if round_over or self._due(trainer) or _over(trainer):
            self.save(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def save(self, trainer: L.Trainer) -> None:
        """Write ``last.ckpt``; the one before it becomes ``previous.ckpt``, a better one best."""
        last, better = self.folder / "last.ckpt", self._note_best(trainer)
        if last.exists() and self.keep_previous:
            _link(last, self.folder / "previous.ckpt", trainer)
        trainer.save_checkpoint(last)
        self.keep_previous = True
        if better:
            _link(last, self.folder / "best.ckpt", trainer)

    def _note_best(self, trainer: L.Trainer) -> bool:
        value = self._measured(trainer)
        if value is None or value is self._noted or not math.isfinite(float(value)):
            return False  # not measured since the last time
        self._noted = value
        score = self.sign * float(value)
        if self.best is not None and score <= self.best:
            return False
        self.best, self.best_step = score, trainer.global_step
        return True

    def _measured(self, trainer: L.Trainer) -> Any:
        return trainer.callback_metrics.get(self.monitor) if self.monitor else None

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.monotonic() - self._started
        return {"best": self.best, "best_step": self.best_step, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.seconds = state_dict["seconds"]


def _over(trainer: L.Trainer) -> bool:
    """Whether this was the last step of the run."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return trainer.global_step >= data.total_steps or trainer.global_step == trainer.max_steps


def _link(source: Path, target: Path, trainer: L.Trainer) -> None:
    """``target`` becomes another name of ``source``, at once; a copy where links do not exist."""
    if not trainer.is_global_zero or not source.exists():
        return
    if target.exists() and source.samefile(target):
        return  # renaming one name of a file to another of its names does nothing
    temporary = target.with_name(target.name + ".part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    os.replace(temporary, target)


def _check(path: Path) -> None:
    """Raise whatever is wrong with a checkpoint; its tensors are not kept in memory."""
    with zipfile.ZipFile(path) as archive:  # torch.load alone does not compare check sums
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the check sum of {damaged} differs")
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that can be read, None if there is none.

    A damaged ``last.ckpt`` is said aloud and the one before it is taken.

    Raises:
        Refusal: there are checkpoints, and none can be read.
    """
    folder = Path(folder)
    present = [p for p in (folder / "last.ckpt", folder / "previous.ckpt") if p.exists()]
    for path in present:
        try:
            _check(path)
        except Exception as error:  # any kind of damage
            log.warning("checkpoint %s cannot be read (%s); trying the one before", path, error)
            continue
        return path
    if present:
        raise Refusal(
            f"no checkpoint in {folder} can be read ({', '.join(p.name for p in present)}); "
            "restore one from a backup, or start a new run"
        )
    return None

"""Arms the DataModule at the right moment and commits positions; part of ``trainer_kwargs``."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from lit_pref.data.checks import reuse_warning, sampling_warning
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.types import Refusal

__all__ = ["RoundCallback"]

log = logging.getLogger(__name__)


class RoundCallback(L.Callback):
    """The trainer's side of rounds.

    ``train_dataloader`` is the only hook between "everything is restored" and "lengths are
    frozen"; before ``on_fit_start`` nothing is restored yet, so the DataModule refuses until then.
    """

    def __init__(self) -> None:
        self._limit: int | float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Validation is the Evaluation callback's; Lightning's loop serves trainer.validate alone.
        self._limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # not declared
        if not isinstance(data, RoundDataModule):
            raise Refusal(
                f"expected one of lit_pref's DataModules, got {type(data).__name__}; pass "
                "datamodule=OnPolicyDataModule(...) or OfflineDataModule(...) to trainer.fit"
            )
        self._check(trainer, data)
        data.check(data.client)
        for warning_of in (reuse_warning, sampling_warning):
            warning = warning_of(data, data.client)
            if warning is not None and trainer.is_global_zero:
                log.warning(warning)
        data.armed = False

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._limit is not None:
            trainer.limit_val_batches, self._limit = self._limit, None
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, RoundDataModule):
            data.armed = False  # another trainer may lack this callback

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    @staticmethod
    def _check(trainer: L.Trainer, data: RoundDataModule) -> None:
        replaced = [
            ("accumulate_grad_batches", 1, "data.micro_batch_tokens"),
            ("gradient_clip_val", None, "optimizer.clip_norm"),
        ]
        for name, neutral, instead in replaced:
            value = getattr(trainer, name)
            if value not in (neutral, 0 if neutral is None else neutral):
                raise Refusal(
                    f"trainer.{name}={value} does not apply (an optimizer step is one batch of "
                    f"groups, optimised manually); use {instead} instead"
                )
        if trainer.precision in ("16-mixed", "16-true"):
            raise Refusal(
                f"trainer.precision={trainer.precision}: half precision with loss scaling is not "
                "supported (gradients would be clipped while they are scaled); use bf16-mixed or "
                "32-true"
            )
        # set by Lightning, not declared
        every: int = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if every != 1:
            raise Refusal(
                f"trainer.reload_dataloaders_every_n_epochs={every}: rounds need 1; build the "
                "trainer with Trainer(**datamodule.trainer_kwargs())"
            )
        epochs = data.rounds * data.reuse
        if trainer.max_epochs not in (epochs, -1):
            raise Refusal(
                f"trainer.max_epochs={trainer.max_epochs}, but rounds x reuse = {epochs}; "
                "set data.rounds (max_epochs is derived from it)"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.datamodule.armed = True  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.loader.commit(batch.index[2] + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.loader.commit(data.loader.start())
